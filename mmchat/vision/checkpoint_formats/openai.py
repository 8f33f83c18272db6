"""OpenAI's CLIP (openai/CLIP, clip/model.py): TorchScript archives, or a state dict with the same keys in any file."""

from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmchat.errors import UserError
from mmchat.vision.checkpoint_formats.base import (
    TowerCheckpoint,
    count_blocks,
    rename_key,
    require_keys,
    split_qkv,
    with_backbone_prefix,
)
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.modified_resnet import STAGES, STRIDES
from mmchat.vision.spec import TowerConfig

Value = TypeVar("Value")

TOWER = "visual."
OTHERS = (
    "visual.proj",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "logit_scale",
    "input_resolution",
    "context_length",
    "vocab_size",
)
"""Prefixes of keys outside the tower: text encoder, projections, three numbers."""
HEAD_WIDTH = 64
WIDEST = 1024
"""Width of OpenAI's largest ViT. Wider ones with these keys are open_clip's, whose heads have other widths."""

VIT = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.": "embeddings.patch_embedding.",
    "ln_pre.": "pre_layrnorm.",
    "ln_post.": "post_layernorm.",
    "transformer.resblocks.": "encoder.layers.",
}
"""Prefixes of keys of a ViT, without `visual.` -> those of transformers' CLIPVisionModel."""
VIT_BLOCK = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
"""The same within a block."""


class OpenAI:
    name = "OpenAI's CLIP"

    def recognises(self, files: WeightFiles) -> bool:
        return holds_clip(files.shapes)

    def open(self, files: WeightFiles, weights: bool) -> TowerCheckpoint:
        config = clip_config(tower_part(files.shapes), files.path)
        return TowerCheckpoint(config, clip_state(tower_part(files.tensors())) if weights else None)


def tower_part(named: Mapping[str, Value], other_parts: tuple[str, ...] = OTHERS) -> dict[str, Value]:
    """Drop other parts' keys and the tower's prefix. Unknown keys stay, to be refused when the tower is filled."""
    return {key.removeprefix(TOWER): value for key, value in named.items() if not key.startswith(other_parts)}


def holds_clip(names: Iterable[str]) -> bool:
    """Whether these keys of a file are a CLIP's."""
    kinds = (f"{TOWER}transformer.resblocks.", f"{TOWER}attnpool.")
    return f"{TOWER}conv1.weight" in names and any(name.startswith(kinds) for name in names)


def is_resnet(names: Iterable[str]) -> bool:
    """Whether keys without the tower's prefix are a ResNet's: only a ResNet has an attention pool."""
    return any(name.startswith("attnpool.") for name in names)


def clip_config(shapes: Mapping[str, tuple[int, ...]], where: Path, **stated: Any) -> TowerConfig:
    """Derive the config of a ViT or ResNet from tensor shapes.

    Args:
        shapes: Key without the tower's prefix -> shape.
        where: Origin of the weights, for messages.
        stated: Backbone settings that are known from a config file.

    Raises:
        UserError: A tensor is missing that this needs, or it is a ViT whose number of heads only open_clip's config
            gives.
    """
    if is_resnet(shapes):
        return TowerConfig("clip_resnet", {**_resnet(shapes, where), **stated})
    if "num_attention_heads" not in stated:
        stated["num_attention_heads"] = _heads(shapes["conv1.weight"][0], where)
    return TowerConfig("clip_vit", {**_vit(shapes, where), **stated})


def clip_state(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tower's weights in float32: published weights mix float16 with float32 norms, and would not multiply."""
    state = _resnet_state(tensors) if is_resnet(tensors) else transformer_state(tensors, VIT)
    return with_backbone_prefix({key: tensor.float() for key, tensor in state.items()})


def _heads(width: int, where: Path) -> int:
    if width > WIDEST or width % HEAD_WIDTH:
        raise UserError(
            f"the ViT in {where} has width {width}; OpenAI's have head width {HEAD_WIDTH} and at most width {WIDEST}. "
            "If it is open_clip's, put its open_clip_config.json next to it: that gives the number of heads"
        )
    return width // HEAD_WIDTH


def _vit(shapes: Mapping[str, tuple[int, ...]], where: Path) -> dict[str, Any]:
    hidden = "transformer.resblocks.0.mlp.c_fc.bias"
    require_keys(shapes, ["conv1.weight", "positional_embedding", hidden], where)
    width, patch = shapes["conv1.weight"][0], shapes["conv1.weight"][-1]
    return {
        "hidden_size": width,
        "intermediate_size": shapes[hidden][0],
        "num_hidden_layers": count_blocks(shapes, "transformer.resblocks."),
        "image_size": isqrt(shapes["positional_embedding"][0] - 1) * patch,
        "patch_size": patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _resnet(shapes: Mapping[str, tuple[int, ...]], where: Path) -> dict[str, Any]:
    require_keys(shapes, ["conv3.weight", "attnpool.positional_embedding", "attnpool.c_proj.bias"], where)
    return {
        "layers": [count_blocks(shapes, f"layer{stage}.") for stage in range(1, STAGES + 1)],
        "width": shapes["conv3.weight"][0],
        "image_size": isqrt(shapes["attnpool.positional_embedding"][0] - 1) * STRIDES[-1],
        "output_dim": shapes["attnpool.c_proj.bias"][0],
    }


def transformer_state(tensors: Mapping[str, torch.Tensor], prefixes: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Weights of a ViT or a text encoder under transformers' keys. prefixes: old -> new."""
    state = {}
    for key, tensor in tensors.items():
        key = rename_key(key, prefixes, VIT_BLOCK)
        block, fused, kind = key.partition(".attn.in_proj_")
        state |= split_qkv(f"{block}.self_attn.", kind, tensor) if fused else {key: tensor}
    return state


def _resnet_state(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop the batch counters of the norms."""
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(".num_batches_tracked")}
