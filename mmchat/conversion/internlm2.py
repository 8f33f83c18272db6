"""InternLM2 (Cai et al. 2024, arXiv:2403.17297), loaded as a Llama.

The two differ in names, and query, key and value are one matrix: for each key-value head its query heads, its key and
its value (OpenGVLab/InternVL, internvl/model/internlm2/modeling_internlm2.py `InternLM2Attention.forward`).
"""

from typing import Any

import torch
from transformers import LlamaConfig

from mmchat.conversion.key_map import KeyMap

FUSED = ".attention.wqkv."
KEYS = KeyMap(
    ("language_model.model.tok_embeddings.*", "language_model.model.embed_tokens.*"),
    ("language_model.output.*", "language_model.lm_head.*"),
    ("language_model.model.layers.#.attention.wo.*", "language_model.model.layers.#.self_attn.o_proj.*"),
    ("language_model.model.layers.#.feed_forward.w1.*", "language_model.model.layers.#.mlp.gate_proj.*"),
    ("language_model.model.layers.#.feed_forward.w2.*", "language_model.model.layers.#.mlp.down_proj.*"),
    ("language_model.model.layers.#.feed_forward.w3.*", "language_model.model.layers.#.mlp.up_proj.*"),
    ("language_model.model.layers.#.attention_norm.*", "language_model.model.layers.#.input_layernorm.*"),
    ("language_model.model.layers.#.ffn_norm.*", "language_model.model.layers.#.post_attention_layernorm.*"),
)


def language_config(values: dict[str, Any]) -> LlamaConfig:
    """The values of an `InternLM2Config` as a Llama config. `bias` is that of all attention matrices."""
    return LlamaConfig(**{key: value for key, value in values.items() if key != "bias"}, attention_bias=values["bias"])


def language_state(state: dict[str, torch.Tensor], language: LlamaConfig) -> dict[str, torch.Tensor]:
    """Rename InternLM2's keys inside an assistant to Llama's. Other keys are kept."""
    separate: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        block, fused, kind = key.partition(FUSED)
        separate |= _split(f"{block}.self_attn.", kind, tensor, language) if fused else {key: tensor}
    return KEYS.import_state(separate)


def _split(prefix: str, kind: str, fused: torch.Tensor, language: LlamaConfig) -> dict[str, torch.Tensor]:
    """Args: `fused`: [key-value heads * (query heads of each + 2) * head width, ...]; other shapes stay as they are."""
    groups, per_group = language.num_key_value_heads, language.num_attention_heads // language.num_key_value_heads
    if fused.shape[0] != groups * (per_group + 2) * language.head_dim:
        return {f"{prefix.removesuffix('.self_attn.')}{FUSED}{kind}": fused}
    parts = fused.unflatten(0, (groups, per_group + 2, language.head_dim)).split([per_group, 1, 1], dim=1)
    return {f"{prefix}{name}_proj.{kind}": part.flatten(0, 2) for name, part in zip("qkv", parts, strict=True)}
