"""The directory of an assistant: opened strictly, written and verified."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration, MMChatProcessor
from mmchat.errors import UserError
from mmchat.hub import resolve
from mmchat.model.card import ModelCard
from mmchat.model.projectors import slots_per_image
from mmchat.model_kinds import ASSISTANT
from mmchat.opening import check_tokenizer, opening
from mmchat.pretrained import ModelDirectory, save_verified
from mmchat.vision import Fit, TowerConfig, refuse_unequal_views, tower_spec, with_fit

LOGITS_TOLERANCE = 1e-4
"""Largest difference of logits between the model in memory and its reloaded copy (fp32)."""
DIRECTORY = ModelDirectory(ASSISTANT, MMChatForConditionalGeneration, LOGITS_TOLERANCE)


def load_assistant(
    source: str | Path, dtype: str = "auto", fit: Fit | None = None, **options: Any
) -> tuple[MMChatForConditionalGeneration, MMChatProcessor]:
    """Open an assistant that mmchat wrote.

    Args:
        source: The directory, or a hub name (`mmchat.hub.resolve`).
        dtype: Of the weights in memory, as torch names it; "auto" is the dtype on disk.
        fit: How images are fitted to the towers' input, for model and processor; None: as in training.
        **options: Of `from_pretrained`, for example `device_map`.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        UserError: The directory does not exist, holds another kind of model or an adapter, or lacks a file; or weights
            are damaged, missing, left over or of another shape.
    """
    source = resolve(source)  # once, so that weights and processor are of one commit
    return _with_processor(DIRECTORY.load(source, dtype, **options), source, fit)


def assistant_from_config(
    source: str | Path, fit: Fit | None = None
) -> tuple[MMChatForConditionalGeneration, MMChatProcessor]:
    """As `load_assistant`, without reading weights; see `ModelDirectory.from_config`."""
    source = resolve(source, weights=False)
    return _with_processor(DIRECTORY.from_config(source), source, fit)


def _with_processor(
    model: MMChatForConditionalGeneration, source: str | Path, fit: Fit | None
) -> tuple[MMChatForConditionalGeneration, MMChatProcessor]:
    processor = load_processor(source)
    if processor.image_tokens != model.image_tokens:
        raise UserError(
            f"{source}: the processor gives a view of an image {processor.image_tokens} slots, but towers and "
            f"projectors give it {model.image_tokens} features; config.json and processor_config.json belong to "
            "different models: copy or write the directory again"
        )
    if processor.image_processor.specs != model.specs:
        raise UserError(
            f"{source}: processor_config.json describes other towers than config.json; they belong to different "
            "models: copy or write the directory again"
        )
    slot, expected = processor.slot_tokens.pad, model.config.image_token_id
    if (found := processor.tokenizer.convert_tokens_to_ids(slot)) != expected:
        raise UserError(
            f"{source}: {slot} has the id {found} in tokenizer.json, but {expected} in config.json; they belong to "
            "different models, or one is damaged: copy or write the directory again"
        )
    if fit is not None:
        model.set_fit(fit)
        processor.set_towers(model.specs, model.image_tokens)
    return model.eval(), processor


def load_processor(source: str | Path, fit: Fit | None = None) -> MMChatProcessor:
    """Open the processor of an assistant without reading weights. Arguments and errors as in `load_assistant`."""
    directory = ASSISTANT.check(source, *ASSISTANT.files)
    with opening(directory):
        check_tokenizer(directory)
        # Without the option, transformers asks on the terminal whether to run code that the files name.
        processor = MMChatProcessor.from_pretrained(directory, trust_remote_code=False)
        if fit is not None:
            config = MMChatConfig.from_pretrained(directory)
            specs = [tower_spec(with_fit(TowerConfig.from_dict(tower), fit)) for tower in config.towers]
            refuse_unequal_views(specs)
            processor.set_towers(specs, slots_per_image(specs, config.projectors, config.fusion))
        assert processor.image_processor.specs and processor.slot_tokens  # made of values that were only stored so far
    return processor


def save_assistant(
    model: MMChatForConditionalGeneration, processor: MMChatProcessor, directory: Path, data: Sequence[str] = ()
) -> None:
    """Write an assistant as a model directory, with a README.md.

    Args:
        model: The model.
        processor: Its processor.
        directory: Where to write.
        data: Names of the data sources that it was trained on, for the README.md.

    Raises:
        RuntimeError: The written model, reloaded, computes other logits for `comparison_logits`.
    """

    def outputs(assistant: MMChatForConditionalGeneration) -> list[torch.Tensor]:
        return [comparison_logits(assistant, processor)]

    # Reloaded with its processor, so that a directory whose processor cannot be opened is never called written.
    parts = [processor, ModelCard(model, data)]
    save_verified(model, parts, directory, lambda path: load_assistant(path)[0], outputs, LOGITS_TOLERANCE)


def save_without_weights(model: MMChatForConditionalGeneration, processor: MMChatProcessor, directory: Path) -> None:
    """Write what `assistant_from_config` opens: a model directory without weights."""
    for part in (model.config, model.generation_config, processor):
        part.save_pretrained(directory)


@torch.no_grad()
def comparison_logits(model: nn.Module, processor: MMChatProcessor) -> torch.Tensor:
    """Logits for `processor.comparison_inputs`, to compare an assistant with a copy: float[1, L, V]."""
    return model(**processor.comparison_inputs().to(model.device)).logits
