"""OpenAI's CLIP (openai/CLIP, clip/model.py): its archives, or a state dict with their keys, whatever file it is in."""

import re
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmchat.errors import UserError
from mmchat.vision.checkpoint_formats.base import TowerCheckpoint, listed, with_backbone_prefix
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.families.clip_resnet import STAGES, STRIDES
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
"""Beginnings of keys of what is no part of the tower: the text half, the way into the common space, three numbers."""
HEAD_WIDTH = 64
WIDEST = 1024
"""OpenAI's largest ViT. Wider ones under these keys are open_clip's, and their heads have other widths."""

VIT = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.": "embeddings.patch_embedding.",
    "ln_pre.": "pre_layrnorm.",
    "ln_post.": "post_layernorm.",
    "transformer.resblocks.": "encoder.layers.",
}
"""How keys of a ViT begin, here and in transformers' CLIPVisionModel; `visual.` is off."""
VIT_BLOCK = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
"""What follows a block's number."""


class OpenAI:
    name = "OpenAI's CLIP"

    def recognises(self, source: WeightFiles) -> bool:
        return holds_clip(source.shapes)

    def open(self, source: WeightFiles, weights: bool) -> TowerCheckpoint:
        config = clip_config(of_tower(source.shapes), source.path)
        return TowerCheckpoint(config, clip_state(of_tower(source.tensors())) if weights else None)


def of_tower(named: Mapping[str, Value], others: tuple[str, ...] = OTHERS) -> dict[str, Value]:
    """What is not some other part's, without the tower's prefix. Keys that are nobody's stay, to be refused."""
    return {key.removeprefix(TOWER): value for key, value in named.items() if not key.startswith(others)}


def holds_clip(names: Iterable[str]) -> bool:
    """By names as they stand in the file."""
    kinds = (f"{TOWER}transformer.resblocks.", f"{TOWER}attnpool.")
    return f"{TOWER}conv1.weight" in names and any(name.startswith(kinds) for name in names)


def is_resnet(names: Iterable[str]) -> bool:
    """By names without the tower's prefix. Only a ResNet has an attention pool."""
    return any(name.startswith("attnpool.") for name in names)


def clip_config(shapes: Mapping[str, tuple[int, ...]], where: Path, **stated: Any) -> TowerConfig:
    """What the shapes tell of a ViT or ResNet. stated: settings of the backbone that are known from elsewhere.

    Raises:
        UserError: a tensor that tells it is missing, or it is a ViT whose heads only open_clip's config tells.
    """
    if is_resnet(shapes):
        return TowerConfig("clip_resnet", {**_resnet(shapes, where), **stated})
    if "num_attention_heads" not in stated:
        stated["num_attention_heads"] = _heads(shapes["conv1.weight"][0], where)
    return TowerConfig("clip_vit", {**_vit(shapes, where), **stated})


def clip_state(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tower's weights, all in float32: published ones are in half precision but for norms, and would not multiply."""
    state = _resnet_state(tensors) if is_resnet(tensors) else transformer_state(tensors, VIT)
    return with_backbone_prefix({key: tensor.float() for key, tensor in state.items()})


def need(shapes: Mapping[str, tuple[int, ...]], keys: list[str], where: Path) -> None:
    """Raises UserError that lists which of the tensors that tell a tower's size are missing."""
    if missing := [key for key in keys if key not in shapes]:
        raise UserError(f"the weights in {where} do not tell the tower's size: missing: {listed(missing)}")


def depth(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """One more than the largest number that follows `prefix`."""
    numbers = (re.match(rf"{re.escape(prefix)}(\d+)\.", key) for key in shapes)
    return 1 + max((int(found[1]) for found in numbers if found), default=-1)


def renamed(key: str, beginnings: Mapping[str, str], inner: Mapping[str, str]) -> str:
    """Old -> new, of how a key begins and of what it holds further on."""
    for old, new in beginnings.items():
        if key.startswith(old):
            key = new + key.removeprefix(old)
            break
    for old, new in inner.items():
        key = key.replace(old, new)
    return key


def split(prefix: str, kind: str, fused: torch.Tensor) -> dict[str, torch.Tensor]:
    """Query, key and value, thirds of one tensor, under transformers' names. kind: weight or bias."""
    thirds = zip("qkv", fused.tensor_split(3), strict=True)
    return {f"{prefix}{name}_proj.{kind}": third.clone() for name, third in thirds}


def _heads(width: int, where: Path) -> int:
    if width > WIDEST or width % HEAD_WIDTH:
        raise UserError(
            f"the ViT in {where} is {width} wide and none of OpenAI's, whose heads are {HEAD_WIDTH} wide and which are "
            f"at most {WIDEST}; if it is open_clip's, put its open_clip_config.json, which tells the heads, beside it"
        )
    return width // HEAD_WIDTH


def _vit(shapes: Mapping[str, tuple[int, ...]], where: Path) -> dict[str, Any]:
    hidden = "transformer.resblocks.0.mlp.c_fc.bias"
    need(shapes, ["conv1.weight", "positional_embedding", hidden], where)
    width, patch = shapes["conv1.weight"][0], shapes["conv1.weight"][-1]
    return {
        "hidden_size": width,
        "intermediate_size": shapes[hidden][0],
        "num_hidden_layers": depth(shapes, "transformer.resblocks."),
        "image_size": isqrt(shapes["positional_embedding"][0] - 1) * patch,
        "patch_size": patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _resnet(shapes: Mapping[str, tuple[int, ...]], where: Path) -> dict[str, Any]:
    need(shapes, ["conv3.weight", "attnpool.positional_embedding", "attnpool.c_proj.bias"], where)
    return {
        "layers": [depth(shapes, f"layer{stage}.") for stage in range(1, STAGES + 1)],
        "width": shapes["conv3.weight"][0],
        "image_size": isqrt(shapes["attnpool.positional_embedding"][0] - 1) * STRIDES[-1],
        "output_dim": shapes["attnpool.c_proj.bias"][0],
    }


def transformer_state(tensors: Mapping[str, torch.Tensor], beginnings: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Either half's weights under transformers' keys, which begin as `beginnings` says."""
    state = {}
    for key, tensor in tensors.items():
        key = renamed(key, beginnings, VIT_BLOCK)
        block, fused, kind = key.partition(".attn.in_proj_")
        state |= split(f"{block}.self_attn.", kind, tensor) if fused else {key: tensor}
    return state


def _resnet_state(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As it is, without how many batches the norms have seen."""
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(".num_batches_tracked")}
