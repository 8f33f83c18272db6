"""GGUF for llama.cpp and programs built on it: a file with the language model, and an mmproj of tower and projector."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversion.card import Usage
from mmchat.conversion.checks import Sample
from mmchat.conversion.gguf.chat_template import template_refusals
from mmchat.conversion.gguf.check import WrittenFiles, compare_with_llamacpp, read_written, square_samples
from mmchat.conversion.gguf.gguf_file import DTYPES
from mmchat.conversion.gguf.language import language_refusals
from mmchat.conversion.gguf.llamacpp import PYTHON_VARIABLE, find_python
from mmchat.conversion.gguf.model_files import write_language_file, write_mmproj_file
from mmchat.conversion.gguf.projectors import (
    INTERNVL,
    LFM2,
    image_tokens_to_force,
    loses_class_token,
    projector_refusals,
    projector_type,
)
from mmchat.conversion.gguf.tokenizer import normalises, stop_ids, tokenizer_refusals
from mmchat.conversion.gguf.usage import llamacpp_usage
from mmchat.conversion.gguf.vision import tower_refusals
from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.vision import TowerConfig, tower_spec

READER_BUG = (
    "llama.cpp reads towers with a class token wrongly (issue 25814 of ggml-org/llama.cpp): each patch gets its "
    "neighbour's position, the first patch is lost, and the class token takes a slot"
)
DTYPE_NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class GGUF:
    """Target `gguf`.

    Attributes:
        dtype: One of `DTYPES`; None: that of the model directory.
        known_reader_bug: Write the standard file also for a tower that llama.cpp reads wrongly.

    Raises:
        UserError: The dtype is unknown.
    """

    dtype: str | None = None
    known_reader_bug: bool = False

    name = "gguf"
    description = "GGUF for llama.cpp"
    transformers_class = None

    def __post_init__(self) -> None:
        if self.dtype not in (None, *DTYPES):
            raise UserError(f"dtype {self.dtype!r} is unknown; expected one of {', '.join(DTYPES)}")

    def refusals(self, config: MMChatConfig, processor: MMChatProcessor | None = None) -> list[str]:
        reasons = [*self._vision_refusals(config), *language_refusals(config.text_config)]
        if processor is None:
            return reasons
        return [*reasons, *tokenizer_refusals(processor.tokenizer), *template_refusals(processor)]

    def _vision_refusals(self, config: MMChatConfig) -> list[str]:
        if len(config.towers) != 1:
            return [f"it has {len(config.towers)} vision towers, expected 1"]
        tower, projector = TowerConfig.from_dict(config.towers[0]), config.projectors[0]
        if reasons := tower_refusals(tower):
            return reasons
        reasons = projector_refusals(tower, tower_spec(tower), projector)
        found = projector_type(tower, projector)
        if found is None:
            return reasons
        if loses_class_token(tower, found) and not self.known_reader_bug:
            reasons.append(f"{READER_BUG}; --known-reader-bug writes the standard files for a reader that is corrected")
        slots = config.slots
        if found.markers and not (slots["start"] and slots["end"]):
            reasons.append(f"it has no tokens around an image, but llama.cpp writes {' and '.join(found.markers)}")
        return reasons

    def export(self, model: MMChatForConditionalGeneration, processor: MMChatProcessor) -> "GGUFFiles":
        """As in `ExportFormat`.

        Raises:
            UserError: The `gguf` package is not installed, or the model has no stop token or too many.
        """
        require("gguf")
        stop_ids(model.generation_config)
        return GGUFFiles(model, processor, self.dtype or DTYPE_NAMES[model.dtype])

    def usage(self, model: MMChatForConditionalGeneration) -> Usage:
        projector = projector_type(TowerConfig.from_dict(model.config.towers[0]), model.config.projectors[0])
        assert projector is not None, "refusals was not asked"
        return llamacpp_usage(image_tokens_to_force(projector, model.image_tokens))

    def samples(self, model: MMChatForConditionalGeneration, processor: MMChatProcessor) -> list[Sample]:
        return square_samples(model, processor)

    def check(self, directory: Path, samples: Sequence[Sample], processor: MMChatProcessor) -> list[str]:
        """As in `ExportFormat`. Files that llama.cpp is known to read wrongly are not compared."""
        written, python = read_written(directory), find_python()
        if written.loses_class_token:
            compared = f"not compared: {READER_BUG}"
        elif python is None:
            compared = (
                f"not compared: xllamacpp is not installed; {PYTHON_VARIABLE} may name an interpreter that has it"
            )
        else:
            compared = compare_with_llamacpp(directory, written, samples, processor, python)
        return [compared, *notes(written, processor)]


@dataclass(frozen=True)
class GGUFFiles:
    """An assistant without refusals, before its files are written."""

    model: MMChatForConditionalGeneration
    processor: MMChatProcessor
    dtype: str

    def write(self, directory: Path) -> None:
        """Write both files into a new directory."""
        config = self.model.config
        projector = projector_type(TowerConfig.from_dict(config.towers[0]), config.projectors[0])
        assert projector is not None, "refusals was not asked"
        directory.mkdir(parents=True)
        write_language_file(self.model, self.processor, projector, directory, self.dtype)
        write_mmproj_file(self.model, projector, directory, self.dtype)


def notes(written: WrittenFiles, processor: MMChatProcessor) -> list[str]:
    """What differs in use, one line each."""
    spec, projector = processor.image_processor.specs[0], written.projector
    side = f"{spec.image_size} x {spec.image_size} pixels"
    if spec.preprocessing.resample != "bicubic" or projector is LFM2:
        seen = f"images of {side} are seen as in mmchat; llama.cpp resizes others in another way"
    elif projector is INTERNVL:
        seen = f"square images of at most {side} are seen as in mmchat; llama.cpp makes several views of others"
    else:
        seen = "square images are seen as in mmchat; llama.cpp resizes others with their proportions and pads them"
    lines = [f"{seen} (fit here: {spec.preprocessing.fit})"]
    if tokens := image_tokens_to_force(projector, processor.image_tokens):
        lines.append(f"start llama.cpp with --image-min-tokens {tokens} --image-max-tokens {tokens}")
    if normalises(processor.tokenizer):
        lines.append("llama.cpp does not compose characters (NFC): text with combining marks may get other tokens")
    return lines
