"""Meta's files of SAM (facebookresearch/segment-anything, `sam_vit_b_01ec64.pth` and the larger ones)."""

from typing import Any

from mmchat.errors import UserError
from mmchat.vision.checkpoint_formats.base import TowerCheckpoint
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, TowerConfig

PREPROCESSING = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, "bilinear", "longest-edge-pad")
OTHERS = ("prompt_encoder.", "mask_decoder.")

RELATIVE = "attn.rel_pos_h"
_RENAMED = (
    ("patch_embed.proj.", "patch_embed.projection."),
    ("blocks.", "layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    ("neck.0.", "neck.conv1."),
    ("neck.1.", "neck.layer_norm1."),
    ("neck.2.", "neck.conv2."),
    ("neck.3.", "neck.layer_norm2."),
)


class Sam:
    name = "Meta's SAM (image_encoder.*)"

    def recognises(self, source: WeightFiles) -> bool:
        return holds_encoder(source, "image_encoder.")

    def open(self, source: WeightFiles, weights: bool) -> TowerCheckpoint:
        config = TowerConfig("sam", encoder_config(source, "image_encoder."), preprocessing=PREPROCESSING)
        if not weights:
            return TowerCheckpoint(config, None)
        state = source.tensors()
        own = {key: tensor for key, tensor in state.items() if not key.startswith(OTHERS)}
        return TowerCheckpoint(config, {tower_key(key.removeprefix("image_encoder.")): own[key] for key in own})


def holds_encoder(source: WeightFiles, prefix: str) -> bool:
    return f"{prefix}blocks.0.{RELATIVE}" in source.shapes


def encoder_config(source: WeightFiles, prefix: str) -> dict[str, Any]:
    """Values of `SamVisionConfig`, all of which the shapes tell: relative positions are as wide as a head and as many
    as there are distances, so they say which blocks see windows, how large these are, and which see the whole image.

    Raises:
        UserError: a tensor that this needs is missing.
    """
    shapes = {key.removeprefix(prefix): shape for key, shape in source.shapes.items() if key.startswith(prefix)}
    needed = ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.lin1.weight", "neck.0.weight")
    if missing := [f"{prefix}{key}" for key in needed if key not in shapes]:
        raise UserError(f"the weights in {source.path} do not fit a SAM encoder: missing: {', '.join(missing)}")
    _, side, _, width = shapes["pos_embed"]
    patch = shapes["patch_embed.proj.weight"][-1]
    seen = {}  # block -> how many places lie along the side of what its patches see
    while (key := f"blocks.{len(seen)}.{RELATIVE}") in shapes:
        distances, head_width = shapes[key]
        seen[len(seen)] = (distances + 1) // 2
    windows = {block: length for block, length in seen.items() if length != side}
    return {
        "hidden_size": width,
        "output_channels": shapes["neck.0.weight"][0],
        "num_hidden_layers": len(seen),
        "num_attention_heads": width // head_width,
        "image_size": side * patch,
        "patch_size": patch,
        "mlp_dim": shapes["blocks.0.mlp.lin1.weight"][0],
        "window_size": max(windows.values(), default=side),
        "global_attn_indexes": [block for block in seen if block not in windows],
    }


def tower_key(key: str) -> str:
    """A key of Meta's `ImageEncoderViT` as `families.sam` has it."""
    for old, new in _RENAMED:
        key = key.replace(old, new)
    return f"backbone.vision_encoder.{key}"
