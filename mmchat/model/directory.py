"""A model directory: opened strictly, and never called written before it was read back and compared."""

import shutil
from pathlib import Path

import torch

from mmchat.auto import MMChatForConditionalGeneration, MMChatProcessor
from mmchat.errors import UserError
from mmchat.files import read_json, replace_directory
from mmchat.pretrained import load_strictly

LOGITS_TOLERANCE = 1e-4
"""Largest difference of logits between the model in memory and its reloaded copy (fp32)."""


def load_assistant(source: str | Path) -> tuple[MMChatForConditionalGeneration, MMChatProcessor]:
    """Model (evaluation mode) and processor of a directory that mmchat wrote.

    Raises:
        UserError: no such directory, another kind of model, a file missing, or weights missing, left over or damaged.
    """
    directory = Path(source)
    if not directory.is_dir():
        raise UserError(f"model directory {directory} does not exist; make one with `mmchat init`, or train first")
    found = read_json(directory / "config.json").get("model_type")
    if found != "mmchat":
        raise UserError(f"{directory} holds a model of type {found!r}, expected an assistant (mmchat)")
    if missing := [
        name for name in ("*.safetensors", "processor_config.json", "tokenizer.json") if not any(directory.glob(name))
    ]:
        raise UserError(f"{directory} is incomplete: it has no {', '.join(missing)}; copy it again, or write it anew")
    model = load_strictly(MMChatForConditionalGeneration, directory)
    return model.eval(), MMChatProcessor.from_pretrained(directory)


def save_assistant(
    model: MMChatForConditionalGeneration,
    processor: MMChatProcessor,
    directory: Path,
) -> None:
    """Write aside, reload strictly, compare logits on a made-up picture and text, rename into place.

    Raises:
        RuntimeError: the reloaded model computes something else.
    """
    aside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    processor.save_pretrained(aside)
    reloaded, _ = load_assistant(aside)
    reloaded.to(model.device)
    was_training = model.training
    model.eval()
    probe = processor.probe().to(model.device)
    with torch.no_grad():
        difference = (model(**probe).logits - reloaded(**probe).logits).abs().max().item()
    model.train(was_training)
    if not difference <= LOGITS_TOLERANCE:
        raise RuntimeError(
            f"the model written to {aside} differs from the one in memory by {difference:g} in its logits"
        )
    replace_directory(aside, directory)
