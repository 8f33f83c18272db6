"""open_clip (mlfoundations/open_clip): CLIPs with OpenAI's keys, and SigLIPs with timm's tower.

On the hub, `open_clip_config.json` is beside the weights. It gives what shapes do not: activation, head width and
preprocessing. Without it, files are open_clip's if they hold a text encoder under `text.` or timm's tower; open_clip's
defaults are then assumed. Files with OpenAI's keys only are OpenAI's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch

from mmchat.errors import UserError
from mmchat.files import read_json_object
from mmchat.vision.checkpoint_formats import openai
from mmchat.vision.checkpoint_formats.base import (
    TowerCheckpoint,
    count_blocks,
    rename_key,
    require_keys,
    split_qkv,
    with_backbone_prefix,
)
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import HALF, Preprocessing, TowerConfig

OTHERS = (*openai.OTHERS, "text.", "logit_bias")

ACCEPTED = ("image_size", "layers", "width", "patch_size", "mlp_ratio", "patch_dropout", "output_tokens")
"""Settings of `vision_cfg` that are read, follow from shapes, or do not change what a trained tower computes. For a ViT
`head_width` too."""
DEFAULTS = {"pool_type": "tok", "pos_embed_type": "learnable", "head_width": openai.HEAD_WIDTH}
"""Other settings are refused, unless they have these values or are false."""

FITS = {"shortest": "shortest-edge-crop", "squash": "squash"}
"""open_clip's `resize_mode` -> `Preprocessing.fit`."""

SIGLIP_HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}
"""Width -> number of heads of B, L, so400m and g (timm, vision_transformer.py `vit_*_siglip_*`)."""
SIGLIP = {
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "pos_embed": "embeddings.position_embedding.weight",
    "blocks.": "encoder.layers.",
    "norm.": "post_layernorm.",
    "attn_pool.latent": "head.probe",
    "attn_pool.proj.": "head.attention.out_proj.",
    "attn_pool.norm.": "head.layernorm.",
    "attn_pool.mlp.": "head.mlp.",
}
"""Prefixes of keys of timm's SigLIP, without `visual.trunk.` -> those of transformers' SiglipVisionModel."""
SIGLIP_BLOCK = {".norm1.": ".layer_norm1.", ".norm2.": ".layer_norm2.", ".attn.proj.": ".self_attn.out_proj."}
"""The same within a block."""


class OpenCLIP:
    name = "open_clip"

    def recognises(self, files: WeightFiles) -> bool:
        if config_path(files).exists():
            return True
        has_text_prefix = any(name.startswith("text.") for name in files.shapes)
        return holds_siglip(files.shapes) or (has_text_prefix and openai.holds_clip(files.shapes))

    def open(self, files: WeightFiles, weights: bool) -> TowerCheckpoint:
        path = config_path(files)
        stated = read_json_object(path) if path.exists() else {}
        model = stated.get("model_cfg", {})
        shapes = openai.tower_part(files.shapes, OTHERS)
        if holds_siglip(files.shapes):
            config, to_state = siglip_config(shapes, model.get("vision_cfg", {}), files.path), siglip_state
        elif openai.holds_clip(files.shapes):
            config, to_state = clip_config(shapes, model, files.path), openai.clip_state
        else:
            raise UserError(
                f"{path} belongs to weights of open_clip, but there are none with a CLIP ViT, a CLIP ResNet or timm's "
                f"SigLIP; its vision_cfg is {model.get('vision_cfg')}"
            )
        config = replace(
            config,
            antialias=True,
            preprocessing=read_preprocessing(stated.get("preprocess_cfg", {}), config.preprocessing, path),
        )
        return TowerCheckpoint(config, to_state(openai.tower_part(files.tensors(), OTHERS)) if weights else None)


def clip_config(shapes: Mapping[str, tuple[int, ...]], model: dict[str, Any], where: Path) -> TowerConfig:
    """Derive the config of a CLIP tower.

    Args:
        shapes: Key without the tower's prefix -> shape.
        model: `model_cfg`, or empty.
        where: Origin of the weights, for messages.

    Raises:
        UserError: `model` has settings that no tower here supports.
    """
    vision = model.get("vision_cfg", {})
    resnet = openai.is_resnet(shapes)
    accepted = ACCEPTED if resnet else (*ACCEPTED, "head_width")
    unsupported = {
        key: value for key, value in vision.items() if key not in accepted and value and value != DEFAULTS.get(key)
    }
    if unsupported:
        raise UserError(f"the open_clip_config.json of {where} has {unsupported}, which no tower here supports")
    names = {"image_size": "image_size", "layers": "layers" if resnet else "num_hidden_layers"}
    stated = {ours: vision[theirs] for theirs, ours in names.items() if theirs in vision}
    if not resnet:
        stated["hidden_act"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
        if model:
            stated["num_attention_heads"] = shapes["conv1.weight"][0] // vision.get("head_width", openai.HEAD_WIDTH)
    return openai.clip_config(shapes, where, **stated)


def read_preprocessing(stated: dict[str, Any], default: Preprocessing, path: Path) -> Preprocessing:
    """Read `preprocess_cfg`.

    Args:
        stated: `preprocess_cfg`, or empty.
        default: Values for what it does not state.
        path: The file, for messages.

    Raises:
        UserError: `resize_mode` is unknown.
    """
    mode = stated.get("resize_mode")
    if mode is not None and mode not in FITS:
        raise UserError(f"{path}: resize_mode {mode!r} is unknown; expected one of {', '.join(FITS)}")
    return Preprocessing(
        mean=stated.get("mean", default.mean),
        std=stated.get("std", default.std),
        resample=stated.get("interpolation", default.resample),
        fit=default.fit if mode is None else FITS[mode],
    )


def holds_siglip(names: Iterable[str]) -> bool:
    """Whether these keys of a file are timm's SigLIP."""
    return {"visual.trunk.attn_pool.latent", "visual.trunk.patch_embed.proj.weight"} <= set(names)


def siglip_config(shapes: Mapping[str, tuple[int, ...]], vision: dict[str, Any], where: Path) -> TowerConfig:
    """Derive the config of a SigLIP tower from shapes.

    Args:
        shapes: Key without the tower's prefix -> shape.
        vision: `vision_cfg`, or empty.
        where: Origin of the weights, for messages.

    Raises:
        UserError: A tensor is missing that this needs, or the number of heads for this width is unknown.
    """
    hidden = "trunk.blocks.0.mlp.fc1.bias"
    require_keys(shapes, ["trunk.pos_embed", hidden], where)
    width, patch = shapes["trunk.patch_embed.proj.weight"][0], shapes["trunk.patch_embed.proj.weight"][-1]
    if width not in SIGLIP_HEADS:
        known = ", ".join(map(str, SIGLIP_HEADS))
        raise UserError(f"the SigLIP in {where} has width {width}; the number of heads is known for widths {known}")
    backbone = {
        "hidden_size": width,
        "intermediate_size": shapes[hidden][0],
        "num_hidden_layers": count_blocks(shapes, "trunk.blocks."),
        "num_attention_heads": SIGLIP_HEADS[width],
        "image_size": vision.get("image_size", isqrt(shapes["trunk.pos_embed"][-2]) * patch),
        "patch_size": patch,
        # As in training (big_vision, models/vit.py, flax's gelu). timm uses the exact GELU for B and L.
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
    return TowerConfig("siglip", backbone, preprocessing=Preprocessing(HALF, HALF, fit="squash"))


def siglip_state(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tower's weights under transformers' keys, in float32 as from `openai.clip_state`."""
    tensors = {key.removeprefix("trunk."): tensor.float() for key, tensor in tensors.items()}
    state: dict[str, torch.Tensor] = {}
    for kind in ("weight", "bias"):
        query, key_value = f"attn_pool.q.{kind}", f"attn_pool.kv.{kind}"
        if query in tensors and key_value in tensors:
            state[f"head.attention.in_proj_{kind}"] = torch.cat([tensors.pop(query), tensors.pop(key_value)])
    for key, tensor in tensors.items():
        key = rename_key(key, SIGLIP, SIGLIP_BLOCK)
        block, fused, kind = key.partition(".attn.qkv.")
        state |= split_qkv(f"{block}.self_attn.", kind, tensor) if fused else {key: tensor}
    positions = "embeddings.position_embedding.weight"
    if positions in state:
        state[positions] = state[positions].flatten(0, -2)
    return with_backbone_prefix(state)


def config_path(files: WeightFiles) -> Path:
    """`open_clip_config.json` in a directory or beside a file. It may not exist."""
    folder = files.path if files.path.is_dir() else files.path.parent
    return folder / "open_clip_config.json"
