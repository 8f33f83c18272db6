"""Megatron's `CLIPViTModel`, alone or in an assistant, whole or as tensor-parallel ranks.

Source of names and shapes: NVIDIA/Megatron-LM, megatron/core/models/vision/clip_vit_model.py; and in
examples/multimodal/: config.py (`get_vision_model_config`), model_converter/, image_processing.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

from mmchat.errors import UserError
from mmchat.vision.checkpoint_formats.base import TowerCheckpoint, refuse_unknown_keys, with_backbone_prefix
from mmchat.vision.checkpoint_formats.hugging_face import INTERNVIT_PREPROCESSING
from mmchat.vision.checkpoint_formats.tensor_parallel import BLOCK, Tensors, merge_ranks, remove_padding
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import HALF, Preprocessing, TowerConfig

FIRST_BLOCK = "decoder.layers.0.self_attention.linear_qkv.weight"
AROUND_BLOCKS = {"conv1.weight": 4, "position_embeddings.weight": 2}
"""Key -> number of dimensions."""
OTHER_PARTS = ("language_model.", "vision_projection.")
EXTRA_STATE = "_extra_state"
"""Suffix of Transformer Engine's fp8 scales, which are not weights."""

FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
"""Transformer Engine stores a norm with the matrix after it: its infix -> that without Transformer Engine."""


@dataclass(frozen=True)
class Subtype:
    """A subtype of `CLIPViTModel` and its counterpart in transformers.

    Attributes:
        family: Key of `FAMILIES`.
        width: Hidden size of the released model.
        mlp_width: Hidden size of its MLPs.
        head_width: Size of its attention heads.
        blocks: Prefix of a block's number in transformers' keys.
        attention: Prefix of `q_proj` within a block.
        names: Megatron's modules and parameters -> transformers'; for blocks, what follows the number.
        backbone: Backbone values that do not follow from shapes.
        preprocessing: Of the released model.
        settings: Fields of `TowerConfig`.
    """

    family: str
    width: int
    mlp_width: int
    head_width: int
    blocks: str
    attention: str
    names: dict[str, str]
    backbone: dict[str, Any]
    preprocessing: Preprocessing
    settings: dict[str, Any] = field(default_factory=dict)


_CLIP_NAMES = {
    "conv1": "embeddings.patch_embedding",
    "position_embeddings": "embeddings.position_embedding",
    "class_token": "embeddings.class_embedding",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "input_layernorm": "layer_norm1",
    "pre_mlp_layernorm": "layer_norm2",
    "self_attention.linear_proj": "self_attn.out_proj",
    "mlp.linear_fc1": "mlp.fc1",
    "mlp.linear_fc2": "mlp.fc2",
}
_INTERNVIT_NAMES = {
    "conv1": "embeddings.patch_embeddings.projection",
    "position_embeddings.weight": "embeddings.position_embeddings",
    "class_token": "embeddings.cls_token",
    "input_layernorm": "layernorm_before",
    "pre_mlp_layernorm": "layernorm_after",
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    "self_attention.linear_proj": "attention.projection_layer",
    "self_attention.q_layernorm": "attention.q_norm",
    "self_attention.k_layernorm": "attention.k_norm",
    "mlp.linear_fc1": "mlp.fc1",
    "mlp.linear_fc2": "mlp.fc2",
}
_IN_CLIP = ("encoder.layers.", "self_attn.", _CLIP_NAMES)
_IN_INTERNVIT = ("encoder.layer.", "attention.", _INTERNVIT_NAMES)

SUBTYPES = {
    "clip": Subtype(
        "clip_vit_headless",
        1024,
        4096,
        64,
        *_IN_CLIP,
        {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        Preprocessing(fit="squash"),
    ),
    "siglip": Subtype(
        "siglip",
        1152,
        4304,
        72,
        *_IN_CLIP,
        {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": False},
        Preprocessing(HALF, HALF, fit="squash"),
        {"final_norm": True},
    ),
    "internvit": Subtype(
        "internvit",
        3200,
        12800,
        128,
        *_IN_INTERNVIT,
        {
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "norm_type": "rms_norm",
            "attention_bias": False,
            "use_qk_norm": True,
        },
        INTERNVIT_PREPROCESSING,
    ),
    "internvit300M": Subtype(
        "internvit",
        1024,
        4096,
        64,
        *_IN_INTERNVIT,
        {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "norm_type": "layer_norm", "attention_bias": True},
        INTERNVIT_PREPROCESSING,
    ),
}


class Megatron:
    name = "Megatron's CLIPViTModel"

    def recognises(self, files: WeightFiles) -> bool:
        return bool(_prefixes(files.shapes))

    def open(self, files: WeightFiles, weights: bool) -> TowerCheckpoint:
        prefix = _prefixes(files.shapes)[0]
        if prefix:
            refuse_unknown_keys(files, (prefix, *OTHER_PARTS))
        shards = [_tower_part(tensors, prefix) for tensors in files.shards]
        where = str(files.path)
        whole = merge_ranks(shards, where)
        subtype = SUBTYPES[subtype_of(whole, where)]
        width, _, _, patch = whole["conv1.weight"].shape
        layers = 1 + max(int(match[1]) for match in map(BLOCK.fullmatch, whole) if match)
        mlp_width = next((len(whole[key]) for key in whole if key.endswith("mlp.linear_fc1.bias")), 0)
        if width == subtype.width and mlp_width != subtype.mlp_width:
            # Attention may not show it: the last rank may hold only zero heads.
            raise UserError(f"{where} holds {mlp_width} of the {subtype.mlp_width} MLP channels: a rank is missing")
        head_width = _head_width(subtype, width, layers, files.arguments, where)
        classes = whole["class_token"].numel() // width if "class_token" in whole else 0
        backbone = {
            "hidden_size": width,
            "intermediate_size": mlp_width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // head_width,
            "image_size": isqrt(len(whole["position_embeddings.weight"]) - classes) * patch,
            "patch_size": patch,
            **subtype.backbone,
        }
        config = TowerConfig(subtype.family, backbone, preprocessing=subtype.preprocessing, **subtype.settings)
        return TowerCheckpoint(
            config, with_backbone_prefix(to_transformers(whole, subtype, head_width, where)) if weights else None
        )


def subtype_of(state: Iterable[str], where: str) -> str:
    """The key in `SUBTYPES`, by parts that only one subtype has."""
    names = set(state)
    if "ln_pre.weight" in names:
        return "clip"
    if "class_token" not in names:
        return "siglip"
    if "decoder.layers.0.self_attention.q_layernorm.weight" in names:
        return "internvit"
    if "decoder.layers.0.ls1" in names:
        return "internvit300M"
    raise UserError(f"{where} holds a Megatron vision model of an unknown subtype; known: {', '.join(SUBTYPES)}")


def to_transformers(whole: Tensors, subtype: Subtype, head_width: int, where: str) -> Tensors:
    """Convert to the keys and shapes of transformers' model. Unknown keys keep their name, to be refused later."""
    width = len(whole["conv1.weight"])
    state: Tensors = {}
    for key, tensor in whole.items():
        block, inside = _split_key(key, subtype)
        module, _, leaf = inside.rpartition(".")
        if module == "self_attention.linear_qkv":
            if len(tensor) % (3 * head_width):
                raise UserError(
                    f"{where}: {key} has {len(tensor)} rows, which is not a multiple of a head's 3 x {head_width}"
                )
            heads = tensor.reshape(-1, 3, head_width, *tensor.shape[1:])
            for index, name in enumerate("qkv"):
                part = remove_padding(heads[:, index].flatten(0, 1), 0, width, key, where)
                state[f"{block}{subtype.attention}{name}_proj.{leaf}"] = part
            continue
        if inside == "self_attention.linear_proj.weight":
            tensor = remove_padding(tensor, 1, width, key, where)
        elif module in ("self_attention.q_layernorm", "self_attention.k_layernorm"):
            tensor = remove_padding(tensor, 0, width, key, where)
        if inside in subtype.names:
            state[block + subtype.names[inside]] = tensor
        elif module in subtype.names:
            state[f"{block}{subtype.names[module]}.{leaf}"] = tensor
        else:
            state[key] = tensor
    if subtype.family == "internvit":
        state["embeddings.position_embeddings"] = state["embeddings.position_embeddings"][None]
    elif "embeddings.class_embedding" in state:
        state["embeddings.class_embedding"] = state["embeddings.class_embedding"].flatten()
    return state


def _prefixes(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Prefixes of the `CLIPViTModel`s in a file; empty for a model that is alone."""
    found = sorted(name.removesuffix(FIRST_BLOCK) for name in shapes if name.endswith(FIRST_BLOCK))
    return [
        prefix
        for prefix in found
        if all(len(shapes.get(prefix + name, ())) == dimensions for name, dimensions in AROUND_BLOCKS.items())
    ]


def _tower_part(tensors: Tensors, prefix: str) -> Tensors:
    """One rank's tensors of the tower, with norms named as without Transformer Engine."""
    tower = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix) and not key.endswith(EXTRA_STATE):
            key = key.removeprefix(prefix)
            for fused, plain in FUSED_NORMS.items():
                key = key.replace(fused, plain)
            tower[key] = tensor
    return tower


def _split_key(key: str, subtype: Subtype) -> tuple[str, str]:
    """Prefix in transformers' keys, and the key within its block."""
    block = BLOCK.fullmatch(key)
    return (f"{subtype.blocks}{block[1]}.", block[2]) if block else ("", key)


def _head_width(subtype: Subtype, width: int, layers: int, arguments: dict[str, Any], where: str) -> int:
    """Head width from the run's arguments if they describe this tower, not a language model; else the released one.

    Raises:
        UserError: The width is not a multiple of it.
    """
    head_width = subtype.head_width
    if (arguments.get("hidden_size"), arguments.get("num_layers")) == (width, layers):
        head_width = arguments.get("kv_channels") or width // arguments["num_attention_heads"]
    if width % head_width:
        raise UserError(
            f"{where} does not give the number of heads, and width {width} is no multiple of the released head width "
            f"{head_width}; save the run's `args` (hidden_size, num_layers, kv_channels) in the checkpoint"
        )
    return head_width
