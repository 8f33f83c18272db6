"""The language model of a GGUF file: Llama and Qwen2.

Keys and tensor names: ggml-org/llama.cpp, gguf-py/gguf/constants.py and tensor_mapping.py.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedConfig

from mmchat.conversion.gguf.gguf_file import Value, Weight
from mmchat.conversion.key_map import KeyMap

ARCHITECTURES = ("llama", "qwen2")
"""Types of language models that can be written: transformers' `model_type`, and llama.cpp's architecture."""

KEYS = KeyMap(
    ("token_embd.*", "model.embed_tokens.*"),
    ("output_norm.*", "model.norm.*"),
    ("output.*", "lm_head.*"),
    ("blk.#.attn_norm.*", "model.layers.#.input_layernorm.*"),
    ("blk.#.attn_q.*", "model.layers.#.self_attn.q_proj.*"),
    ("blk.#.attn_k.*", "model.layers.#.self_attn.k_proj.*"),
    ("blk.#.attn_v.*", "model.layers.#.self_attn.v_proj.*"),
    ("blk.#.attn_output.*", "model.layers.#.self_attn.o_proj.*"),
    ("blk.#.ffn_norm.*", "model.layers.#.post_attention_layernorm.*"),
    ("blk.#.ffn_gate.*", "model.layers.#.mlp.gate_proj.*"),
    ("blk.#.ffn_up.*", "model.layers.#.mlp.up_proj.*"),
    ("blk.#.ffn_down.*", "model.layers.#.mlp.down_proj.*"),
)
"""Names in the file and in transformers."""


def language_refusals(config: PreTrainedConfig) -> list[str]:
    """Reasons why a language model cannot be written."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        return [f"its language model is {kind}; expected {' or '.join(ARCHITECTURES)}"]
    reasons = []
    if config.hidden_act != "silu":
        reasons.append(f"its language model's hidden_act is {config.hidden_act}; llama.cpp's {kind} has silu")
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        reasons.append(f"its language model has rotary positions of type {rope}; only the default type is written")
    if kind == "llama" and (config.attention_bias or config.mlp_bias):
        reasons.append("its language model is a Llama with biases (attention_bias, mlp_bias)")
    if kind == "qwen2" and "sliding_attention" in config.layer_types:
        reasons.append("its language model has sliding_attention in some layers, which llama.cpp's qwen2 has not")
    return reasons


def language_metadata(config: PreTrainedConfig) -> dict[str, Value]:
    """Metadata of a language model without refusals."""
    head_dim = head_size(config)
    values: dict[str, Value] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "rope.dimension_count": head_dim,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "vocab_size": config.vocab_size,
    }
    return {f"{config.model_type}.{key}": value for key, value in values.items()}


def head_size(config: PreTrainedConfig) -> int:
    """Width of a head. Not every config states it."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def language_weights(model: nn.Module) -> Iterator[Weight]:
    """The tensors of a language model without refusals. A head that is tied to the embeddings is left out."""
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = KEYS.foreign(key)
        part = name.split(".")[2] if name.startswith("blk.") else ""
        reorder = config.model_type == "llama" and part in heads
        yield Weight(name, tensor, partial(interleave_rotary, heads=heads[part]) if reorder else None)


def interleave_rotary(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of a query or key matrix from transformers' rotary order to llama.cpp's.

    In transformers rotary pairs are rows i and i + head_dim / 2 of a head (`rotate_half`); in llama.cpp's `llama` they
    are rows 2i and 2i + 1 (`LLAMA_ROPE_TYPE_NORM`).

    Args:
        matrix: float[heads * head_dim, in].
        heads: Number of heads.
    """
    pairs = matrix.unflatten(0, (heads, 2, -1))
    return pairs.transpose(1, 2).reshape(matrix.shape)
