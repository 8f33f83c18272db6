"""Export a dual encoder as transformers' CLIP or SigLIP."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from mmchat.contrastive.captions import encode_caption
from mmchat.contrastive.card import export_card
from mmchat.contrastive.directory import load_clip, load_tokenizer
from mmchat.contrastive.dual_encoder import MAX_LOGIT_SCALE, DualEncoder
from mmchat.contrastive.embedding import Embedder
from mmchat.contrastive.text_formats import LEGACY_EOS
from mmchat.errors import UserError
from mmchat.files import staged_directory, write_text
from mmchat.front_matter import CARD
from mmchat.hub import hub_repos, resolve
from mmchat.vision import TowerSpec

TOLERANCE = 1e-4
"""Largest difference between the unit vectors of a dual encoder and of its export, opened by transformers (fp32)."""
TEXT = "an image"
PREFIXES = {
    "towers.0.backbone.": "vision_model.",
    "text_encoder.": "text_model.",
    "image_projection.": "visual_projection.",
}
"""Prefixes of keys here -> in transformers' classes."""


def export_dual_encoder(source: str | Path, out: Path) -> list[str]:
    """Open a dual encoder and write it with `export_clip`.

    Args:
        source: What `load_clip` opens, with a tokenizer.
        out: Directory to write; replaced if it exists.

    Returns:
        What was written and compared, one line each.

    Raises:
        UserError, RuntimeError: As `load_clip` and `export_clip`.
    """
    bases, source = hub_repos(source), resolve(source, "dual encoder")
    model = load_clip(source, dtype="float32")
    tokenizer = load_tokenizer(source, model)
    name = transformers_class(model).__name__
    export_clip(model, tokenizer, out, export_card(model, name, source, bases))
    return [f"transformers' {name}", f"{name} opened it: embeddings of an image and a text within {TOLERANCE:g}"]


def transformers_class(model: DualEncoder) -> type[PreTrainedModel]:
    """The class of transformers that a dual encoder becomes."""
    return SiglipModel if model.config.sigmoid else CLIPModel


def export_clip(model: DualEncoder, tokenizer: Any, directory: Path, card: str) -> None:
    """Write a directory that transformers opens, with tokenizer and image processor.

    Args:
        model: The dual encoder.
        tokenizer: Its tokenizer.
        directory: Where to write; replaced if it exists.
        card: Its README.md.

    Raises:
        UserError: transformers' classes do not support the model; lists every reason.
        RuntimeError: Opened by transformers alone, the directory computes something else.
    """
    if problems := unsupported(model, tokenizer):
        kind = "SigLIP" if model.config.sigmoid else "CLIP"
        raise UserError(f"this dual encoder cannot be exported as transformers' {kind}: {'; '.join(problems)}")
    exported = _to_transformers(model)
    with staged_directory(directory) as aside:
        for part in (exported, tokenizer, _image_processor(model.towers[0].spec, model.config.sigmoid)):
            part.save_pretrained(aside)
        write_text(aside / CARD, card)
        _compare(model, tokenizer, aside)


def unsupported(model: DualEncoder, tokenizer: Any) -> list[str]:
    """Reasons why transformers' CLIP (SigLIP for a model with a bias) does not support a dual encoder."""
    config, tower = model.config, model.towers[0]
    family, text_pool, text_type, projected = ("clip_vit", "last", "clip_text_model", True)
    if config.sigmoid:
        family, text_pool, text_type, projected = ("siglip", "padded", "siglip_text_model", False)
    checks = {
        "its tower": (tower.config.family, family),
        "its pool of patches": (config.pool, "pooled"),
        "its pool of tokens": (config.text_pool, text_pool),
        "its text encoder": (config.text_config.model_type, text_type),
        "its image projection": (config.image_projection, projected),
        "its text projection": (config.text_projection, projected),
    }
    problems = [
        f"{what} is {found!r}, expected {expected!r}" for what, (found, expected) in checks.items() if found != expected
    ]
    fits = ("squash",) if config.sigmoid else ("squash", "shortest-edge-crop")
    if (fit := tower.spec.preprocessing.fit) not in fits:
        problems.append(f"its tower's fit is {fit!r}, expected {' or '.join(fits)}")
    if text_type == "clip_text_model" and tokenizer.eos_token_id == LEGACY_EOS:
        problems.append(f"its texts end with id {LEGACY_EOS}, for which transformers pools at a text's largest id")
    if tokenizer("a").input_ids != encode_caption(tokenizer, "a", config.context_length):
        problems.append("its tokenizer does not add the special tokens itself, as users of transformers expect")
    return problems


def _to_transformers(model: DualEncoder) -> PreTrainedModel:
    """The same weights in transformers' class."""
    ours = {key: tensor.detach().float().cpu() for key, tensor in model.state_dict().items()}
    state = {}
    for key, tensor in ours.items():
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), "")
        state[PREFIXES.get(prefix, "") + key.removeprefix(prefix)] = tensor
    parts = {
        "text_config": model.config.text_config.to_dict(),
        "vision_config": model.towers[0].backbone.config.to_dict(),
    }
    if model.config.sigmoid:
        exported: PreTrainedModel = SiglipModel(SiglipConfig(**parts))
    else:
        exported = CLIPModel(CLIPConfig(**parts, projection_dim=model.config.projection_dim))
        # transformers has no upper bound of 100, and its parameter has no dimension.
        state["logit_scale"] = state["logit_scale"].clamp(max=math.log(MAX_LOGIT_SCALE)).reshape(())
    exported.load_state_dict(state)
    return exported.eval()


def _image_processor(spec: TowerSpec, siglip: bool) -> Any:
    how, side = spec.preprocessing, spec.image_size
    square = {"height": side, "width": side}
    resample = Image.Resampling[how.resample.upper()].value
    shared = {"image_mean": list(how.mean), "image_std": list(how.std), "resample": resample}
    if siglip:
        return SiglipImageProcessor(size=square, **shared)
    if how.fit == "squash":
        return CLIPImageProcessor(size=square, do_center_crop=False, **shared)
    return CLIPImageProcessor(size={"shortest_edge": round(side / how.crop_fraction)}, crop_size=square, **shared)


@torch.no_grad()
def _compare(model: DualEncoder, tokenizer: Any, directory: Path) -> None:
    """Raise RuntimeError if transformers gives an image or a text another vector, preprocessing included."""
    theirs, was_training = transformers_class(model).from_pretrained(directory).eval(), model.training
    embedder = Embedder(model.eval(), tokenizer, truncate=True)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    image = Image.fromarray(noise).resize((2 * embedder.spec.image_size, embedder.spec.image_size))
    pixels = AutoImageProcessor.from_pretrained(directory)(image, return_tensors="pt").pixel_values
    padding = {"padding": "max_length" if model.config.sigmoid else False, "max_length": model.config.context_length}
    ids = AutoTokenizer.from_pretrained(directory)(TEXT, return_tensors="pt", truncation=True, **padding).input_ids
    pairs = {
        "an image": (embedder.images([image]), theirs.get_image_features(pixels).pooler_output),
        "a text": (embedder.texts([TEXT]), theirs.get_text_features(ids).pooler_output),
    }
    model.train(was_training)
    for what, (expected, exported) in pairs.items():
        difference = (torch.from_numpy(expected) - F.normalize(exported, dim=-1)).abs().max().item()
        if not difference <= TOLERANCE:  # negated, so that NaN fails too
            raise RuntimeError(f"opened by transformers, {directory} gives {what} another vector, by {difference:g}")
