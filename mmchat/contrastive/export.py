"""A dual encoder as transformers' CLIP or SigLIP, for programs that know nothing of mmchat."""

import math
import shutil
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
from mmchat.contrastive.dual_encoder import MAX_LOGIT_SCALE, DualEncoder
from mmchat.contrastive.embedding import Embedder
from mmchat.contrastive.text_formats import LEGACY_EOS
from mmchat.errors import UserError
from mmchat.files import replace_directory
from mmchat.vision import TowerSpec

TOLERANCE = 1e-4
"""Largest difference of unit vectors between a dual encoder and what transformers makes of the export (fp32)."""
TEXT = "an image"
HALVES = {
    "towers.0.backbone.": "vision_model.",
    "text_encoder.": "text_model.",
    "image_projection.": "visual_projection.",
}
"""How keys begin here, and in transformers' classes."""


def export_clip(model: DualEncoder, tokenizer: Any, directory: Path) -> type[PreTrainedModel]:
    """Write a directory that transformers opens, with tokenizer and image processor; the class that it is of.

    Raises:
        UserError: transformers' classes cannot say what the model is; lists every reason.
        RuntimeError: opened by transformers alone, the directory computes something else.
    """
    if problems := inexpressible(model, tokenizer):
        kind = "SigLIP" if model.config.sigmoid else "CLIP"
        raise UserError(f"this dual encoder cannot be written as transformers' {kind}: {'; '.join(problems)}")
    aside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    written = _of_transformers(model)
    for part in (written, tokenizer, _image_processor(model.towers[0].spec, model.config.sigmoid)):
        part.save_pretrained(aside)
    _compare(model, tokenizer, type(written), aside)
    replace_directory(aside, directory)
    return type(written)


def inexpressible(model: DualEncoder, tokenizer: Any) -> list[str]:
    """What transformers' CLIP, or its SigLIP for a model with a bias, has no words for."""
    config, tower = model.config, model.towers[0]
    family, text_pool, text_type, projected = ("clip_vit", "last", "clip_text_model", True)
    if config.sigmoid:
        family, text_pool, text_type, projected = ("siglip", "padded", "siglip_text_model", False)
    found = {
        "its tower": (tower.config.family, family),
        "its pool of patches": (config.pool, "pooled"),
        "its pool of tokens": (config.text_pool, text_pool),
        "its text encoder": (config.text_config.model_type, text_type),
        "a layer after its tower": (config.image_projection, projected),
        "a layer after its text encoder": (config.text_projection, projected),
    }
    problems = [f"{what} is {mine!r}, expected {theirs!r}" for what, (mine, theirs) in found.items() if mine != theirs]
    fits = ("squash",) if config.sigmoid else ("squash", "shortest-edge-crop")
    if (fit := tower.spec.preprocessing.fit) not in fits:
        problems.append(f"its tower's fit is {fit!r}, expected {' or '.join(fits)}")
    if text_type == "clip_text_model" and tokenizer.eos_token_id == LEGACY_EOS:
        problems.append(f"its texts end with id {LEGACY_EOS}, and transformers then reads at a text's largest id")
    if tokenizer("a").input_ids != encode_caption(tokenizer, "a", config.context_length):
        problems.append("its tokenizer begins and ends no text by itself, as transformers' users expect")
    return problems


def _of_transformers(model: DualEncoder) -> PreTrainedModel:
    """The same weights in transformers' class."""
    ours = {key: tensor.detach().float().cpu() for key, tensor in model.state_dict().items()}
    state = {}
    for key, tensor in ours.items():
        begins = next((start for start in HALVES if key.startswith(start)), "")
        state[HALVES.get(begins, "") + key.removeprefix(begins)] = tensor
    parts = {
        "text_config": model.config.text_config.to_dict(),
        "vision_config": model.towers[0].backbone.config.to_dict(),
    }
    if model.config.sigmoid:
        written: PreTrainedModel = SiglipModel(SiglipConfig(**parts))
    else:
        written = CLIPModel(CLIPConfig(**parts, projection_dim=model.config.projection_dim))
        # transformers does not stop at 100, where ours does, and its temperature has no dimension.
        state["logit_scale"] = state["logit_scale"].clamp(max=math.log(MAX_LOGIT_SCALE)).reshape(())
    written.load_state_dict(state)
    return written.eval()


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
def _compare(model: DualEncoder, tokenizer: Any, kind: type[PreTrainedModel], directory: Path) -> None:
    """Raises RuntimeError where an image or a text, from the file on, has another vector."""
    theirs, was_training = kind.from_pretrained(directory).eval(), model.training
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
    for what, (mine, other) in pairs.items():
        difference = (torch.from_numpy(mine) - F.normalize(other, dim=-1)).abs().max().item()
        if not difference <= TOLERANCE:  # NaN is wrong, too
            raise RuntimeError(f"in {directory} {what} has another vector for transformers, by {difference:g}")
