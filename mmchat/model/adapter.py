"""LoRA (Hu et al. 2021, arXiv:2106.09685) through PEFT: put into an assistant, kept in a directory, merged.

An adapter directory holds what PEFT itself writes (`adapter_config.json`, `adapter_model.safetensors`), the weights
that were trained in full beside it (`full.safetensors`), and which model all this belongs to (`base.json`).
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmchat.auto import MMChatForConditionalGeneration, MMChatProcessor
from mmchat.errors import UserError
from mmchat.files import read_json, write_json
from mmchat.model.directory import ADAPTER_BASE, LOGITS_TOLERANCE, comparison_logits, load_assistant
from mmchat.pretrained import save_verified
from mmchat.vision import Fit

FULL = "full.safetensors"
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class LoraShape:
    """The update of a layer is alpha / rank * B @ A, with A of `rank` rows."""

    rank: int
    alpha: int


def add_adapter(model: MMChatForConditionalGeneration, layers: dict[str, LoraShape], dropout: float) -> PeftModel:
    """Put an update of zero beside each named linear layer, and freeze everything else.

    `model` is changed in place and stays what is trained and called; the result is PEFT's handle on it, which saves
    and merges.
    """
    common = next(iter(layers.values()))
    others = {name: shape for name, shape in layers.items() if shape != common}
    config = LoraConfig(
        r=common.rank,
        lora_alpha=common.alpha,
        lora_dropout=dropout,
        target_modules=list(layers),
        rank_pattern={name: shape.rank for name, shape in others.items()},
        alpha_pattern={name: shape.alpha for name, shape in others.items()},
    )
    adapter = get_peft_model(model, config)
    # PEFT shortens a long list of names to endings, and matches patterns by them.
    made = {name: layer.r["default"] for name, layer in _adapted(model).items()}
    assert made == {name: shape.rank for name, shape in layers.items()}
    return adapter


def _adapted(model: torch.nn.Module) -> dict[str, LoraLayer]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def adapter_parameters(model: torch.nn.Module) -> set[int]:
    """`id` of every parameter that LoRA added."""
    parts = [getattr(layer, name) for layer in _adapted(model).values() for name in layer.adapter_layer_names]
    return {id(parameter) for part in parts for parameter in part.parameters()}


@dataclass
class _Beside:
    """What an adapter directory holds besides PEFT's own files."""

    full: dict[str, torch.Tensor]
    base: dict

    def save_pretrained(self, directory: Path) -> None:
        save_file(self.full, directory / FULL, metadata={"format": "pt"})
        write_json(directory / ADAPTER_BASE, self.base)


def save_adapter(
    adapter: PeftModel, processor: MMChatProcessor, directory: Path, base: Path, fit: Fit | None = None
) -> None:
    """Write what was trained on `base`, with images by `fit`, then open it upon `base` again and compare.

    Raises:
        RuntimeError: what was read back gives other logits for a made-up image and text.
    """
    added = adapter_parameters(adapter)
    trained = adapter.get_base_model().named_parameters()
    # Cloned: ZeRO keeps parameters as views of one tensor, which safetensors refuses to write.
    full = {name: p.detach().cpu().clone() for name, p in trained if p.requires_grad and id(p) not in added}
    # Relative to the directory, so that the two can move together.
    place = Path(os.path.relpath(base.resolve(), directory.resolve())).as_posix()
    beside = _Beside(full, {"model": place, "sha256": _fingerprint(base), "full": sorted(full), "fit": fit})
    save_verified(
        adapter,
        [beside],
        directory,
        lambda path: load_adapter(path, dtype="float32")[0],
        lambda model: [comparison_logits(model, processor)],
        LOGITS_TOLERANCE,
    )


def load_adapter(directory: Path, base: Path | None = None, dtype: str = "auto") -> tuple[PeftModel, MMChatProcessor]:
    """The adapted model (evaluation mode) and the base's processor, with images fitted as it was trained.

    Args:
        base: the model directory that the adapter was trained on; None takes the place that it names.
        dtype: of the base's weights in memory, as torch names it; auto: as they were written.

    Raises:
        UserError: a file is missing or damaged, the base is not there or is another, or weights do not fit.
    """
    if missing := [name for name in (ADAPTER_BASE, *PEFT_FILES, FULL) if not (directory / name).is_file()]:
        raise UserError(f"{directory} is no adapter directory that a run wrote: it has no {', '.join(missing)}")
    stated = read_json(directory / ADAPTER_BASE)
    base = base or (directory / stated["model"]).resolve()
    if not base.is_dir():
        raise UserError(
            f"{directory / ADAPTER_BASE} names the model directory {base}, which does not exist; name it with --base"
        )
    if _fingerprint(base) != stated["sha256"]:
        raise UserError(f"the weights in {base} are not those that {directory} was trained on; name these with --base")
    model, processor = load_assistant(base, dtype, fit=stated["fit"])
    full = _read(directory / FULL)
    adapter_names = set(_read(directory / PEFT_FILES[1]))
    try:
        left_over = model.load_state_dict(full, strict=False).unexpected_keys
        adapter = PeftModel.from_pretrained(model, directory)
    except RuntimeError as error:
        raise UserError(f"the weights in {directory} do not fit {base}: {error}") from None
    expected = set(get_peft_model_state_dict(adapter, save_embedding_layers=False))
    if wrong := sorted({*left_over, *(expected ^ adapter_names), *(set(stated["full"]) ^ set(full))}):
        raise UserError(f"the weights in {directory} do not fit {base}: missing or left over are {', '.join(wrong)}")
    return adapter.eval(), processor


def merge(adapter: PeftModel, processor: MMChatProcessor) -> tuple[MMChatForConditionalGeneration, float]:
    """Add every update to its layer; the plain model, and the largest change of logits that rounding made.

    The adapted model is used up.
    """
    adapter.eval()
    before = comparison_logits(adapter, processor)
    merged = adapter.merge_and_unload()
    return merged, (comparison_logits(merged, processor) - before).abs().max().item()


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"the weights in {path} are damaged or cut off: {error}") from None


def _fingerprint(directory: Path) -> dict[str, str]:
    """SHA-256 of each file of weights: a LoRA merged into another model would be silently worse."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
