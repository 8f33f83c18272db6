"""Compare written GGUF files with the assistant that they were written from, by running llama.cpp."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmchat.auto import MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversation import get_template
from mmchat.conversion.chat_requests import as_request
from mmchat.conversion.checks import NEW_TOKENS, Sample, make_sample, refuse_other_answer
from mmchat.conversion.gguf.gguf_file import FILE_TYPES
from mmchat.conversion.gguf.llamacpp import MMPROJ_FILE, MODEL_FILE, ask_llamacpp
from mmchat.conversion.gguf.projectors import PROJECTOR_TYPES, ProjectorType, image_tokens_to_force
from mmchat.conversion.gguf.tokenizer import STOP_KEYS

QUESTIONS = ("What is this?", "Describe the image.", "Which colours do you see?")
TIES = {"f32": 0.02, "f16": 0.05, "bf16": 0.3, "q8_0": 1.0}
"""dtype -> margin between the best two logits below which llama.cpp may choose either. Its GELU is not exactly torch's
(measured: logits within 0.007 in f32), and in other dtypes it rounds activations too (0.011, 0.12 and 0.36)."""


def square_samples(model: MMChatForConditionalGeneration, processor: MMChatProcessor) -> list[Sample]:
    """What mmchat computes for three images, for two at once, and for text alone.

    The images are squares of the tower's size, so that nothing is resized.
    """
    images = [_square(seed, processor) for seed in range(len(QUESTIONS))]
    asked = [
        (f"image {n}", [image], question) for n, (image, question) in enumerate(zip(images, QUESTIONS, strict=True))
    ]
    asked.append(("2 images", images[:2], "What differs?"))
    if not get_template(processor.template).one_exchange:
        asked.append(("text", [], "Count to ten."))
    return [make_sample(model, processor, *one) for one in asked]


def _square(seed: int, processor: MMChatProcessor) -> Image.Image:
    """Smooth noise."""
    side = processor.image_processor.specs[0].image_size
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class WrittenFiles:
    """What two files say of themselves.

    Attributes:
        dtype: One of `DTYPES`.
        stops: Ids of the stop tokens.
        projector: The projector type.
        loses_class_token: Whether the tower has a class token that llama.cpp puts in the wrong place.
    """

    dtype: str
    stops: list[int]
    projector: ProjectorType
    loses_class_token: bool


def read_written(directory: Path) -> WrittenFiles:
    """Read the metadata of both files."""
    import gguf

    language, mmproj = (gguf.GGUFReader(directory / name) for name in (MODEL_FILE, MMPROJ_FILE))
    file_type = gguf.LlamaFileType(language.fields["general.file_type"].contents()).name
    projector = PROJECTOR_TYPES[mmproj.fields["clip.projector_type"].contents()]
    return WrittenFiles(
        dtype=next(dtype for dtype, name in FILE_TYPES.items() if name == file_type),
        stops=[int(language.fields[key].contents()) for key in STOP_KEYS if key in language.fields],
        projector=projector,
        loses_class_token=any(tensor.name == "v.class_embd" for tensor in mmproj.tensors) and not projector.rolled,
    )


def compare_with_llamacpp(
    directory: Path, written: WrittenFiles, samples: Sequence[Sample], processor: MMChatProcessor, python: str
) -> str:
    """Compare prompts and greedy answers.

    Args:
        directory: Holds both files.
        written: What they say of themselves.
        samples: What mmchat computes.
        processor: The assistant's processor.
        python: An interpreter with xllamacpp.

    Returns:
        One line about what was compared.

    Raises:
        RuntimeError: llama.cpp cannot read the files, has another prompt, or chooses another token where mmchat's
            choice is clear (`TIES`).
    """
    tie = TIES[written.dtype]
    reply = ask_llamacpp(
        python,
        directory,
        [as_request(sample.messages, sample.images) for sample in samples],
        NEW_TOKENS,
        context=max(sample.inputs["input_ids"].shape[1] for sample in samples) + 2 * NEW_TOKENS,
        image_tokens=image_tokens_to_force(written.projector, processor.image_tokens),
        never=written.stops,
    )
    program, same = f"llama.cpp (xllamacpp {reply['version']})", 0
    for sample, found in zip(samples, reply["answers"], strict=True):
        refuse_other_prompt(sample, found, processor, written.projector)
        refuse_other_answer(sample, found["tokens"], program, tie)
        same += found["tokens"] == sample.answer
    left = "" if same == len(samples) else f"; the others leave where the best two logits are {tie:g} apart at most"
    return f"{program} gives {same} of {len(samples)} answers of {NEW_TOKENS} greedy tokens{left}"


def refuse_other_prompt(
    sample: Sample, found: dict[str, Any], processor: MMChatProcessor, projector: ProjectorType
) -> None:
    """Raise RuntimeError unless llama.cpp's prompt has the same tokens."""
    slots, ids = processor.slot_tokens, sample.inputs["input_ids"][0].tolist()
    # /tokenize shows what stands around images; of the tokens that llama.cpp writes with an image only their number.
    hidden = [slots.pad] if projector.markers is None else slots.tokens
    left_out = set(processor.tokenizer.convert_tokens_to_ids(hidden))
    expected = [token for token in ids if token not in left_out]
    if (found["prompt"], found["prompt_tokens"]) != (expected, len(ids)):
        raise RuntimeError(
            f"llama.cpp's prompt for {sample.name} has {found['prompt_tokens']} tokens, expected {len(ids)}; without "
            f"images they are {found['prompt']}, expected {expected}"
        )
