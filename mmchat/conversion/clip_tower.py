"""The config of an OpenAI CLIP ViT inside an assistant, read from tensor shapes."""

from math import isqrt
from typing import Any

from mmchat.vision import TowerConfig
from mmchat.vision.checkpoint_formats import openai
from mmchat.vision.checkpoint_formats.base import count_blocks, require_keys
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles


def clip_config(source: WeightFiles, prefix: str, **settings: Any) -> TowerConfig:
    """The config of a CLIP tower under transformers' names. Heads have OpenAI's width.

    Args:
        source: The whole assistant.
        prefix: Prefix of the tower's keys.
        settings: Fields of `TowerConfig`.

    Raises:
        UserError: A tensor is missing that this needs.
    """
    shapes = {key.removeprefix(prefix): shape for key, shape in source.shapes.items() if key.startswith(prefix)}
    needed = [f"embeddings.{name}.weight" for name in ("patch_embedding", "position_embedding")]
    needed.append("encoder.layers.0.mlp.fc1.weight")
    require_keys(shapes, needed, source.path)
    width, *_, patch = shapes[needed[0]]
    backbone = {
        "hidden_size": width,
        "intermediate_size": shapes[needed[2]][0],
        "num_hidden_layers": count_blocks(shapes, "encoder.layers."),
        "num_attention_heads": width // openai.HEAD_WIDTH,
        "image_size": isqrt(shapes[needed[1]][0] - 1) * patch,
        "patch_size": patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    return TowerConfig("clip_vit", backbone, **settings)
