"""A model directory: opened strictly, and never called written before it was read back and compared."""

from pathlib import Path

import torch
from torch import nn

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration, MMChatProcessor
from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.model.projectors import slots_per_image
from mmchat.pretrained import load_strictly, save_verified
from mmchat.vision import Fit, TowerConfig, refuse_unequal_views, tower_spec, with_fit

WEIGHTS = "*.safetensors"
LOGITS_TOLERANCE = 1e-4
"""Largest difference of logits between the model in memory and its reloaded copy (fp32)."""
ADAPTER_BASE = "base.json"
"""Only directories of LoRA adapters have it (`mmchat.model.adapter`): which model directory they belong to."""


def load_assistant(
    source: str | Path, dtype: str = "auto", fit: Fit | None = None
) -> tuple[MMChatForConditionalGeneration, MMChatProcessor]:
    """Model (evaluation mode) and processor of a directory that mmchat wrote.

    Args:
        dtype: of the weights in memory, as torch names it; auto: as they were written.
        fit: how both are to bring images to the towers' squares; None: as they were trained.

    Raises:
        UserError: no such directory, another kind of model, a file missing, or weights missing, left over or damaged.
    """
    directory = _checked(source, WEIGHTS, "processor_config.json", "tokenizer.json")
    return _fitted(load_strictly(MMChatForConditionalGeneration, directory, dtype=dtype), source, fit)


def assistant_from_config(
    source: str | Path, fit: Fit | None = None
) -> tuple[MMChatForConditionalGeneration, MMChatProcessor]:
    """As `load_assistant`, but no weight is read: they are made anew, where torch makes tensors at the moment.

    For whoever wants to know a model's shapes, on the meta device or with fake tensors. The directory needs no weights.
    """
    return _fitted(MMChatForConditionalGeneration(MMChatConfig.from_pretrained(_checked(source))), source, fit)


def _fitted(
    model: MMChatForConditionalGeneration, source: str | Path, fit: Fit | None
) -> tuple[MMChatForConditionalGeneration, MMChatProcessor]:
    processor = load_processor(source)
    if fit is not None:
        model.set_fit(fit)
        processor.set_towers(model.specs, model.image_tokens)
    return model.eval(), processor


def load_processor(source: str | Path, fit: Fit | None = None) -> MMChatProcessor:
    """Only the processor, without reading a weight. Raises UserError as `load_assistant`."""
    directory = _checked(source, "processor_config.json", "tokenizer.json")
    processor = MMChatProcessor.from_pretrained(directory)
    if fit is not None:
        config = MMChatConfig.from_pretrained(directory)
        specs = [tower_spec(with_fit(TowerConfig.from_dict(tower), fit)) for tower in config.towers]
        refuse_unequal_views(specs)
        processor.set_towers(specs, slots_per_image(specs, config.projectors, config.fusion))
    return processor


def _checked(source: str | Path, *needed: str) -> Path:
    directory = Path(source)
    if not directory.is_dir():
        raise UserError(f"model directory {directory} does not exist; make one with `mmchat init`, or train first")
    if (directory / ADAPTER_BASE).exists():
        raise UserError(
            f"{directory} holds a LoRA adapter, not a whole model; `mmchat merge {directory} --out DIR` makes one"
        )
    found = read_json(directory / "config.json").get("model_type")
    if found != "mmchat":
        raise UserError(f"{directory} holds a model of type {found!r}, expected an assistant (mmchat)")
    missing = [name for name in needed if not any(directory.glob(name))]
    if missing == [WEIGHTS]:
        raise UserError(
            f"{directory} holds no weights ({WEIGHTS}). If `mmchat init --without-weights` made it, it is to plan "
            "with: make one without that option; if it is a copy, copy it again"
        )
    if missing:
        raise UserError(f"{directory} is incomplete: it has no {', '.join(missing)}; copy it again, or write it anew")
    return directory


def save_assistant(
    model: MMChatForConditionalGeneration,
    processor: MMChatProcessor,
    directory: Path,
) -> None:
    """Raises RuntimeError where the written model, read back, gives other logits for a made-up image and text."""

    def logits(one: MMChatForConditionalGeneration) -> list[torch.Tensor]:
        return [comparison_logits(one, processor)]

    save_verified(model, [processor], directory, lambda path: load_assistant(path)[0], logits, LOGITS_TOLERANCE)


def save_shapes(model: MMChatForConditionalGeneration, processor: MMChatProcessor, directory: Path) -> None:
    """All of a model directory but the weights: what `assistant_from_config` opens."""
    for part in (model.config, model.generation_config, processor):
        part.save_pretrained(directory)


@torch.no_grad()
def comparison_logits(model: nn.Module, processor: MMChatProcessor) -> torch.Tensor:
    """Logits float[1, L, V] for a made-up image and text, to compare an assistant with a copy of it."""
    return model(**processor.comparison_inputs().to(model.device)).logits
