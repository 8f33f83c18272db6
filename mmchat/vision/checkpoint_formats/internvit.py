"""InternViT and InternVL-Chat assistants as OpenGVLab publishes them, with remote code, which is not run.

Source of names and defaults: OpenGVLab/InternVL, internvl/model/internvl_chat/ configuration_intern_vit.py,
modeling_intern_vit.py and modeling_internvl_chat.py.
"""

from dataclasses import replace
from typing import Any

import torch

from mmchat.errors import UserError
from mmchat.vision.checkpoint_formats.base import TowerCheckpoint, tensors_below, with_backbone_prefix
from mmchat.vision.checkpoint_formats.hugging_face import INTERNVIT_PREPROCESSING
from mmchat.vision.checkpoint_formats.image_processor import read_preprocessing
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import TowerConfig

MODEL_TYPE = "intern_vit_6b"
"""The `model_type` of all sizes, also of 300M."""

DEFAULTS = {
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 3200,
    "image_size": 224,
    "initializer_factor": 0.1,
    "initializer_range": 0.02,
    "intermediate_size": 12800,
    "layer_norm_eps": 1e-6,
    "norm_type": "rms_norm",
    "num_attention_heads": 25,
    "num_channels": 3,
    "num_hidden_layers": 48,
    "patch_size": 14,
    "qk_normalization": True,
    "qkv_bias": False,
}
"""Defaults of `InternVisionConfig`, without stochastic depth, which only training uses."""

CONFIG_NAMES = {
    "dropout": "projection_dropout",
    "initializer_factor": "layer_scale_init_value",
    "qk_normalization": "use_qk_norm",
    "qkv_bias": "attention_bias",
}
"""Fields with another name in transformers' `InternVLVisionConfig`: OpenGVLab's name -> transformers'."""

TOWER_NAMES = {
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "embeddings.patch_embedding.weight": "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embedding.bias": "embeddings.patch_embeddings.projection.bias",
}
BLOCK_NAMES = {
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.projection_layer",
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Below encoder.layers.N here and encoder.layer.N in transformers. `attn.qkv` is split into three."""


class OpenGVLab:
    name = "OpenGVLab's directory of InternViT or InternVL-Chat"

    def recognises(self, files: WeightFiles) -> bool:
        return MODEL_TYPE in (files.config.get("model_type"), _vision_config(files.config).get("model_type"))

    def open(self, files: WeightFiles, weights: bool) -> TowerCheckpoint:
        stated = files.config
        tower_only = stated.get("model_type") == MODEL_TYPE
        vision = DEFAULTS | (stated if tower_only else _vision_config(stated))
        backbone = {CONFIG_NAMES.get(name, name): vision[name] for name in DEFAULTS}
        side = None
        if tower_only:
            processing, side = read_preprocessing(files.path, INTERNVIT_PREPROCESSING)
            config = TowerConfig("internvit", backbone, preprocessing=processing)
        else:
            # The image processor file of an assistant is used neither in its training nor in its inference code.
            fit = "pad" if stated.get("pad2square") else "squash"
            _refuse_other_size(stated.get("force_image_size"), vision["image_size"])
            layer = stated.get("select_layer", -1)
            config = TowerConfig("internvit", backbone, layer, preprocessing=replace(INTERNVIT_PREPROCESSING, fit=fit))
        if not weights:
            return TowerCheckpoint(config, None, side)
        state = files.tensors() if tower_only else tensors_below(files, "vision_model.", ("language_model.", "mlp1."))
        return TowerCheckpoint(config, with_backbone_prefix(to_transformers(state)), side)


def to_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename OpenGVLab's keys to those of `InternVLVisionModel`. Unknown keys keep their name, to be refused later."""
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        if not key.startswith("encoder.layers."):
            renamed[TOWER_NAMES.get(key, key)] = tensor
            continue
        number, _, inside = key.removeprefix("encoder.layers.").partition(".")
        module, _, leaf = inside.rpartition(".")
        block = f"encoder.layer.{number}."
        if module == "attn.qkv":
            for name, part in zip("qkv", tensor.tensor_split(3), strict=True):
                renamed[f"{block}attention.{name}_proj.{leaf}"] = part
        elif inside in BLOCK_NAMES:
            renamed[block + BLOCK_NAMES[inside]] = tensor
        elif module in BLOCK_NAMES:
            renamed[f"{block}{BLOCK_NAMES[module]}.{leaf}"] = tensor
        else:
            renamed[key] = tensor
    return renamed


def _vision_config(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("vision_config") or {}


def _refuse_other_size(forced: int | None, image_size: int) -> None:
    """Published assistants have positions for the size that they force."""
    if forced not in (None, image_size):
        raise UserError(
            f"config.json has force_image_size {forced}, but its tower has positions for {image_size} pixels; "
            "remove that field and choose the size when the tower is opened"
        )
