"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) through PEFT: add, save, load and merge.

An adapter directory holds PEFT's files (`adapter_config.json`, `adapter_model.safetensors`), the weights that were
trained in full (`full.safetensors`), and a reference to the base model (`base.json`).
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
    """LoRA of a layer: its update is alpha / rank * B @ A, where A has `rank` rows."""

    rank: int
    alpha: int


def add_adapter(model: MMChatForConditionalGeneration, layers: dict[str, LoraShape], dropout: float) -> PeftModel:
    """Add LoRA to linear layers, with an update of zero, and freeze everything else.

    Args:
        model: The model. It is changed in place; train and call it as before.
        layers: Name of a linear layer -> its LoRA.
        dropout: Dropout of the LoRA inputs.

    Returns:
        PEFT's wrapper of `model`, which saves and merges.
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
    # PEFT shortens a long list of names to suffixes and matches patterns by them, so check the result.
    ranks = {name: layer.r["default"] for name, layer in _lora_layers(model).items()}
    assert ranks == {name: shape.rank for name, shape in layers.items()}
    return adapter


def _lora_layers(model: torch.nn.Module) -> dict[str, LoraLayer]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def adapter_parameters(model: torch.nn.Module) -> set[int]:
    """The `id` of every LoRA parameter of a model."""
    parts = [getattr(layer, name) for layer in _lora_layers(model).values() for name in layer.adapter_layer_names]
    return {id(parameter) for part in parts for parameter in part.parameters()}


@dataclass
class _ExtraFiles:
    """The files of an adapter directory that PEFT does not write."""

    full: dict[str, torch.Tensor]
    base: dict

    def save_pretrained(self, directory: Path) -> None:
        save_file(self.full, directory / FULL, metadata={"format": "pt"})
        write_json(directory / ADAPTER_BASE, self.base)


def save_adapter(
    adapter: PeftModel, processor: MMChatProcessor, directory: Path, base: Path, fit: Fit | None = None
) -> None:
    """Write an adapter directory, then load it onto `base` again and compare logits.

    Args:
        adapter: The adapted model.
        processor: Its processor.
        directory: Where to write.
        base: The model directory that was adapted.
        fit: How images were fitted during training. None: as in `base`.

    Raises:
        RuntimeError: The reloaded adapter gives other logits for the comparison inputs.
    """
    added = adapter_parameters(adapter)
    trained = adapter.get_base_model().named_parameters()
    # Cloned: ZeRO keeps parameters as views of one tensor, which safetensors refuses to write.
    full = {name: p.detach().cpu().clone() for name, p in trained if p.requires_grad and id(p) not in added}
    # Relative to the adapter directory, so that both can be moved together.
    relative = Path(os.path.relpath(base.resolve(), directory.resolve())).as_posix()
    extra = _ExtraFiles(full, {"model": relative, "sha256": _weight_hashes(base), "full": sorted(full), "fit": fit})
    save_verified(
        adapter,
        [extra],
        directory,
        lambda path: load_adapter(path, dtype="float32")[0],
        lambda model: [comparison_logits(model, processor)],
        LOGITS_TOLERANCE,
    )


def load_adapter(directory: Path, base: Path | None = None, dtype: str = "auto") -> tuple[PeftModel, MMChatProcessor]:
    """Load an adapter onto its base model.

    Args:
        directory: The adapter directory.
        base: The model directory that the adapter was trained on. None uses the path in `base.json`.
        dtype: Data type of the base weights, as torch names it. "auto" keeps that of the files.

    Returns:
        The adapted model, in evaluation mode, and its processor, which fits images as in training.

    Raises:
        UserError: A file is missing or damaged, the base is missing or is another model, or weights do not fit.
    """
    if missing := [name for name in (ADAPTER_BASE, *PEFT_FILES, FULL) if not (directory / name).is_file()]:
        raise UserError(f"{directory} is not a complete adapter directory: it has no {', '.join(missing)}")
    description = read_json(directory / ADAPTER_BASE)
    base = base or (directory / description["model"]).resolve()
    if not base.is_dir():
        raise UserError(
            f"{directory / ADAPTER_BASE} names the model directory {base}, which does not exist; set it with --base"
        )
    if _weight_hashes(base) != description["sha256"]:
        raise UserError(
            f"the weights in {base} are not those that {directory} was trained on; give that model with --base"
        )
    model, processor = load_assistant(base, dtype, fit=description["fit"])
    full = _read(directory / FULL)
    adapter_names = set(_read(directory / PEFT_FILES[1]))
    try:
        left_over = model.load_state_dict(full, strict=False).unexpected_keys
        adapter = PeftModel.from_pretrained(model, directory)
    except RuntimeError as error:
        raise UserError(f"the weights in {directory} do not fit {base}: {error}") from None
    expected = set(get_peft_model_state_dict(adapter, save_embedding_layers=False))
    if wrong := sorted({*left_over, *(expected ^ adapter_names), *(set(description["full"]) ^ set(full))}):
        raise UserError(f"the weights in {directory} do not fit {base}: missing or unexpected are {', '.join(wrong)}")
    return adapter.eval(), processor


def merge(adapter: PeftModel, processor: MMChatProcessor) -> tuple[MMChatForConditionalGeneration, float]:
    """Merge LoRA into the weights.

    Args:
        adapter: The adapted model. It cannot be used afterwards.
        processor: Its processor.

    Returns:
        The model without adapters, and the largest absolute change of logits, which is due to rounding.
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


def _weight_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of each weight file. LoRA on another base model would be wrong without an error."""
    hashes = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
