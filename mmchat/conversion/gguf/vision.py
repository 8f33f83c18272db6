"""The vision tower of an mmproj file: CLIP, SigLIP and InternViT.

Keys and tensor names: ggml-org/llama.cpp, tools/mtmd/clip-impl.h; graphs: tools/mtmd/models/.
"""

from collections.abc import Iterator

import torch
from transformers import PreTrainedConfig

from mmchat.conversion.gguf.gguf_file import Value, Weight
from mmchat.conversion.key_map import KeyMap
from mmchat.vision import TowerConfig, VisionTower
from mmchat.vision.block_tower import hidden_state_indices
from mmchat.vision.families import FAMILIES

CLASS_TOKEN_FAMILIES = ("clip_vit", "clip_vit_headless", "internvit")
PLAIN_FAMILIES = ("siglip", "siglip2")
"""Families without a class token. A SigLIP 2 that sees squares is the same network as SigLIP."""
ACTIVATIONS: dict[str, dict[str, Value]] = {
    "gelu_pytorch_tanh": {"clip.use_gelu": True},
    "gelu": {"clip.use_gelu": True},
    "silu": {"clip.use_silu": True},
    "quick_gelu": {},
}
"""Activation of the tower -> keys. llama.cpp's GELU is the tanh approximation, also for towers with the exact one."""

KEYS = KeyMap(
    ("v.patch_embd.*", "embeddings.patch_embedding.*"),
    ("v.position_embd.weight", "embeddings.position_embedding.weight"),
    ("v.class_embd", "embeddings.class_embedding"),
    ("v.pre_ln.*", "pre_layrnorm.*"),
    ("v.post_ln.*", "post_layernorm.*"),
    ("v.blk.#.ln1.*", "encoder.layers.#.layer_norm1.*"),
    ("v.blk.#.ln2.*", "encoder.layers.#.layer_norm2.*"),
    ("v.blk.#.attn_out.*", "encoder.layers.#.self_attn.out_proj.*"),
    ("v.blk.#.attn_q.*", "encoder.layers.#.self_attn.q_proj.*"),
    ("v.blk.#.attn_k.*", "encoder.layers.#.self_attn.k_proj.*"),
    ("v.blk.#.attn_v.*", "encoder.layers.#.self_attn.v_proj.*"),
    ("v.blk.#.ffn_up.*", "encoder.layers.#.mlp.fc1.*"),
    ("v.blk.#.ffn_down.*", "encoder.layers.#.mlp.fc2.*"),
)
"""Names in the file and in transformers' CLIP, SigLIP and SigLIP 2."""
INTERNVIT_KEYS = KeyMap(
    ("v.patch_embd.*", "embeddings.patch_embeddings.projection.*"),
    ("v.position_embd.weight", "embeddings.position_embeddings"),
    ("v.class_embd", "embeddings.cls_token"),
    ("v.blk.#.ln1.*", "encoder.layer.#.layernorm_before.*"),
    ("v.blk.#.ln2.*", "encoder.layer.#.layernorm_after.*"),
    ("v.blk.#.attn_out.*", "encoder.layer.#.attention.projection_layer.*"),
    ("v.blk.#.attn_q.*", "encoder.layer.#.attention.q_proj.*"),
    ("v.blk.#.attn_k.*", "encoder.layer.#.attention.k_proj.*"),
    ("v.blk.#.attn_v.*", "encoder.layer.#.attention.v_proj.*"),
    ("v.blk.#.ffn_up.*", "encoder.layer.#.mlp.fc1.*"),
    ("v.blk.#.ffn_down.*", "encoder.layer.#.mlp.fc2.*"),
    ("v.blk.#.ls1.weight", "encoder.layer.#.lambda_1"),
    ("v.blk.#.ls2.weight", "encoder.layer.#.lambda_2"),
)


def tower_refusals(config: TowerConfig) -> list[str]:
    """Reasons why a tower cannot be written, whatever its projector."""
    if config.family not in (*CLASS_TOKEN_FAMILIES, *PLAIN_FAMILIES):
        known = ", ".join((*CLASS_TOKEN_FAMILIES, *PLAIN_FAMILIES))
        return [f"its tower is a {config.family}; llama.cpp's graphs are known for {known}"]
    backbone = FAMILIES[config.family].backbone_config(config)
    reasons = []
    if backbone.hidden_act not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        reasons.append(f"its tower's hidden_act is {backbone.hidden_act}; llama.cpp has {known}")
    if not isinstance(config.layer, int) and len(config.layer) > 1:
        layers = ", ".join(map(str, config.layer))
        reasons.append(f"its tower's features are those of several layers ({layers}); give one")
    if hidden_state_indices(config.layer, backbone.num_hidden_layers) == [0]:
        reasons.append("its tower's features are those of layer 0, which no block computes")
    if config.class_token:
        reasons.append("its tower keeps the class token as a feature (class_token: true), llama.cpp drops it")
    if config.family == "internvit":
        reasons += _internvit_refusals(backbone)
    return [*reasons, *_image_refusals(config)]


def _internvit_refusals(backbone: PreTrainedConfig) -> list[str]:
    expected = {"norm_type": "layer_norm", "use_qk_norm": False, "use_absolute_position_embeddings": True}
    found = {key: getattr(backbone, key) for key in expected}
    differing = ", ".join(f"{key} {found[key]}" for key in expected if found[key] != expected[key])
    return [f"its InternViT has {differing}; only the shape of InternViT-300M is written"] if differing else []


def _image_refusals(config: TowerConfig) -> list[str]:
    how = config.preprocessing
    if how.tiling is not None or how.fit == "native":
        return [
            f"its fit is {how.fit}: llama.cpp would make other views of an image, and another number of slots; train "
            "with a fit that makes one square of an image"
        ]
    if how.crop_fraction != 1:
        return [
            f"its images are cropped to {how.crop_fraction:g} of the short side, also square ones; llama.cpp crops none"
        ]
    return []


def tower_metadata(tower: VisionTower) -> dict[str, Value]:
    """Metadata of a tower without refusals."""
    spec, backbone = tower.spec, tower.backbone.config
    values: dict[str, Value] = {
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "embedding_length": backbone.hidden_size,
        "feed_forward_length": backbone.intermediate_size,
        "block_count": tower.blocks_to_run,
        "attention.head_count": backbone.num_attention_heads,
        "attention.layer_norm_epsilon": backbone.layer_norm_eps,
        "image_mean": list(spec.preprocessing.mean),
        "image_std": list(spec.preprocessing.std),
    }
    return {f"clip.vision.{key}": value for key, value in values.items()} | ACTIVATIONS[backbone.hidden_act]


def tower_weights(tower: VisionTower, class_position_last: bool) -> Iterator[Weight]:
    """The tensors of a tower without refusals. Blocks, norm and head that the features do not use are left out.

    Args:
        tower: The tower.
        class_position_last: Whether the class token's position is written after those of the patches instead of before
            them. llama.cpp's `internvl` graph puts the class token last, but adds positions in the order of the file.
    """
    keys = INTERNVIT_KEYS if tower.config.family == "internvit" else KEYS
    unused = {id(parameter) for parameter in tower.idle_parameters()}
    for key, parameter in tower.backbone.named_parameters():
        if id(parameter) in unused:
            continue
        name, tensor = keys.foreign(key), parameter.detach()
        if name == "v.patch_embd.weight":
            yield Weight(name, patch_convolution(tensor, tower.spec.patch_size), keep_f32=True)
        elif name == "v.position_embd.weight":
            table = tensor.flatten(0, -2)
            yield Weight(name, table.roll(-1, 0) if class_position_last else table, keep_f32=True)
        else:
            yield Weight(name, tensor.flatten() if name == "v.class_embd" else tensor)


def patch_convolution(weight: torch.Tensor, patch: int) -> torch.Tensor:
    """The patch embedding as a convolution, float[D, 3, p, p].

    Args:
        weight: That, or SigLIP 2's matrix float[D, p * p * 3].
        patch: p, in pixels.
    """
    return weight if weight.dim() == 4 else weight.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2)
