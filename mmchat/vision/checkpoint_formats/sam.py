"""Meta's SAM checkpoints (facebookresearch/segment-anything, `sam_vit_b_01ec64.pth` and the larger ones)."""

from typing import Any

from mmchat.vision.checkpoint_formats.base import TowerCheckpoint, require_keys
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

    def recognises(self, files: WeightFiles) -> bool:
        return holds_encoder(files, "image_encoder.")

    def open(self, files: WeightFiles, weights: bool) -> TowerCheckpoint:
        config = TowerConfig("sam", encoder_config(files, "image_encoder."), preprocessing=PREPROCESSING)
        if not weights:
            return TowerCheckpoint(config, None)
        encoder = {key: tensor for key, tensor in files.tensors().items() if not key.startswith(OTHERS)}
        state = {tower_key(key.removeprefix("image_encoder.")): tensor for key, tensor in encoder.items()}
        return TowerCheckpoint(config, state)


def holds_encoder(files: WeightFiles, prefix: str) -> bool:
    """Whether there is an encoder with relative positions below `prefix`."""
    return f"{prefix}blocks.0.{RELATIVE}" in files.shapes


def encoder_config(files: WeightFiles, prefix: str) -> dict[str, Any]:
    """Derive the values of `SamVisionConfig` from tensor shapes.

    A table of relative positions is as wide as a head and has one row per distance. It gives the side of the area that
    a block attends to: a window or the whole image.

    Raises:
        UserError: A tensor is missing that this needs.
    """
    shapes = {key.removeprefix(prefix): shape for key, shape in files.shapes.items() if key.startswith(prefix)}
    needed = ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.lin1.weight", "neck.0.weight")
    require_keys(files.shapes, [f"{prefix}{key}" for key in needed], files.path)
    _, side, _, width = shapes["pos_embed"]
    patch = shapes["patch_embed.proj.weight"][-1]
    sides: dict[int, int] = {}  # block -> side, in patches, of the area that it attends to
    while (key := f"blocks.{len(sides)}.{RELATIVE}") in shapes:
        distances, head_width = shapes[key]
        sides[len(sides)] = (distances + 1) // 2
    windows = {block: length for block, length in sides.items() if length != side}
    return {
        "hidden_size": width,
        "output_channels": shapes["neck.0.weight"][0],
        "num_hidden_layers": len(sides),
        "num_attention_heads": width // head_width,
        "image_size": side * patch,
        "patch_size": patch,
        "mlp_dim": shapes["blocks.0.mlp.lin1.weight"][0],
        "window_size": max(windows.values(), default=side),
        "global_attn_indexes": [block for block in sides if block not in windows],
    }


def tower_key(key: str) -> str:
    """Key of Meta's `ImageEncoderViT` -> key of the towers in `families.sam`."""
    for old, new in _RENAMED:
        key = key.replace(old, new)
    return f"backbone.vision_encoder.{key}"
