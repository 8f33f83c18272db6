"""open_clip (mlfoundations/open_clip): CLIPs under OpenAI's keys, and SigLIPs whose tower is timm's.

On the hub `open_clip_config.json` lies beside the weights. It tells what they cannot: the activation, the width of a
head, how images are prepared. Without it only what open_clip alone writes is taken for open_clip's, and for what it
makes by default: a text half under `text.`, or timm's tower. The same keys as OpenAI's, and nothing else, are OpenAI's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch

from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.vision.checkpoint_formats import openai
from mmchat.vision.checkpoint_formats.base import TowerCheckpoint, with_backbone_prefix
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import HALF, Preprocessing, TowerConfig

OTHERS = (*openai.OTHERS, "text.", "logit_bias")

UNDERSTOOD = ("image_size", "layers", "width", "patch_size", "mlp_ratio", "patch_dropout", "output_tokens")
"""Settings of `vision_cfg` that are read, or that shapes tell, or that do not change what a trained tower computes; of
a ViT `head_width` too."""
USUAL = {"pool_type": "tok", "pos_embed_type": "learnable", "head_width": openai.HEAD_WIDTH}
"""Other settings are refused, unless they ask for this or for nothing."""

FITS = {"shortest": "shortest-edge-crop", "squash": "squash"}
"""Its `resize_mode` -> `Preprocessing.fit`."""

SIGLIP_HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}
"""Width -> heads of B, L, so400m and g (timm, vision_transformer.py `vit_*_siglip_*`)."""
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
"""How keys of timm's SigLIP begin, here and in transformers' SiglipVisionModel; `visual.trunk.` is off."""
SIGLIP_BLOCK = {".norm1.": ".layer_norm1.", ".norm2.": ".layer_norm2.", ".attn.proj.": ".self_attn.out_proj."}


class OpenCLIP:
    name = "open_clip"

    def recognises(self, source: WeightFiles) -> bool:
        if config_of(source).exists():
            return True
        with_own_text = any(name.startswith("text.") for name in source.shapes)
        return holds_siglip(source.shapes) or (with_own_text and openai.holds_clip(source.shapes))

    def open(self, source: WeightFiles, weights: bool) -> TowerCheckpoint:
        path = config_of(source)
        stated = read_json(path) if path.exists() else {}
        model = stated.get("model_cfg", {})
        shapes = openai.of_tower(source.shapes, OTHERS)
        if holds_siglip(source.shapes):
            config, to_state = siglip_config(shapes, model.get("vision_cfg", {}), source.path), siglip_state
        elif openai.holds_clip(source.shapes):
            config, to_state = clip_config(shapes, model, source.path), openai.clip_state
        else:
            raise UserError(
                f"{path} says that the weights are open_clip's, but they are not there, or their tower is neither a "
                f"ViT or ResNet of CLIP's nor timm's SigLIP; its vision_cfg is {model.get('vision_cfg')}"
            )
        config = replace(
            config,
            antialias=True,
            preprocessing=read_preprocessing(stated.get("preprocess_cfg", {}), config.preprocessing, path),
        )
        return TowerCheckpoint(config, to_state(openai.of_tower(source.tensors(), OTHERS)) if weights else None)


def clip_config(shapes: Mapping[str, tuple[int, ...]], model: dict[str, Any], where: Path) -> TowerConfig:
    """model: `model_cfg`, empty where there is none.

    Raises:
        UserError: it asks for what no tower here has.
    """
    vision = model.get("vision_cfg", {})
    resnet = openai.is_resnet(shapes)
    understood = UNDERSTOOD if resnet else (*UNDERSTOOD, "head_width")
    strange = {
        key: value for key, value in vision.items() if key not in understood and value and value != USUAL.get(key)
    }
    if strange:
        raise UserError(f"the open_clip_config.json of {where} asks for {strange}, which no tower here has")
    names = {"image_size": "image_size", "layers": "layers" if resnet else "num_hidden_layers"}
    stated = {ours: vision[theirs] for theirs, ours in names.items() if theirs in vision}
    if not resnet:
        stated["hidden_act"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
        if model:
            stated["num_attention_heads"] = shapes["conv1.weight"][0] // vision.get("head_width", openai.HEAD_WIDTH)
    return openai.clip_config(shapes, where, **stated)


def read_preprocessing(stated: dict[str, Any], usual: Preprocessing, path: Path) -> Preprocessing:
    """What `preprocess_cfg` says; `usual` where it says nothing.

    Raises:
        UserError: it fits images as no tower here does.
    """
    mode = stated.get("resize_mode")
    if mode is not None and mode not in FITS:
        raise UserError(f"{path}: resize_mode {mode!r} is not known here; known: {', '.join(FITS)}")
    return Preprocessing(
        mean=stated.get("mean", usual.mean),
        std=stated.get("std", usual.std),
        resample=stated.get("interpolation", usual.resample),
        fit=usual.fit if mode is None else FITS[mode],
    )


def holds_siglip(names: Iterable[str]) -> bool:
    """By names as they stand in the file."""
    return {"visual.trunk.attn_pool.latent", "visual.trunk.patch_embed.proj.weight"} <= set(names)


def siglip_config(shapes: Mapping[str, tuple[int, ...]], vision: dict[str, Any], where: Path) -> TowerConfig:
    """vision: `vision_cfg`, empty where there is none. It names timm's model; what that is, the shapes tell.

    Raises:
        UserError: a tensor that tells the size is missing, or no SigLIP is as wide.
    """
    hidden = "trunk.blocks.0.mlp.fc1.bias"
    openai.need(shapes, ["trunk.pos_embed", hidden], where)
    width, patch = shapes["trunk.patch_embed.proj.weight"][0], shapes["trunk.patch_embed.proj.weight"][-1]
    if width not in SIGLIP_HEADS:
        known = ", ".join(map(str, SIGLIP_HEADS))
        raise UserError(f"the SigLIP in {where} is {width} wide; heads are known for {known}")
    backbone = {
        "hidden_size": width,
        "intermediate_size": shapes[hidden][0],
        "num_hidden_layers": openai.depth(shapes, "trunk.blocks."),
        "num_attention_heads": SIGLIP_HEADS[width],
        "image_size": vision.get("image_size", isqrt(shapes["trunk.pos_embed"][-2]) * patch),
        "patch_size": patch,
        # As in training (big_vision, models/vit.py; flax's gelu). timm computes the exact one for B and L.
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
    return TowerConfig("siglip", backbone, preprocessing=Preprocessing(HALF, HALF, fit="squash"))


def siglip_state(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tower's weights under transformers' keys, in float32 like those of `openai.clip_state`."""
    tensors = {key.removeprefix("trunk."): tensor.float() for key, tensor in tensors.items()}
    state: dict[str, torch.Tensor] = {}
    for kind in ("weight", "bias"):
        query, key_value = f"attn_pool.q.{kind}", f"attn_pool.kv.{kind}"
        if query in tensors and key_value in tensors:
            state[f"head.attention.in_proj_{kind}"] = torch.cat([tensors.pop(query), tensors.pop(key_value)])
    for key, tensor in tensors.items():
        key = openai.renamed(key, SIGLIP, SIGLIP_BLOCK)
        block, fused, kind = key.partition(".attn.qkv.")
        state |= openai.split(f"{block}.self_attn.", kind, tensor) if fused else {key: tensor}
    positions = "embeddings.position_embedding.weight"
    if positions in state:
        state[positions] = state[positions].flatten(0, -2)
    return with_backbone_prefix(state)


def config_of(source: WeightFiles) -> Path:
    """Beside a file, or in a directory."""
    folder = source.path if source.path.is_dir() else source.path.parent
    return folder / "open_clip_config.json"
