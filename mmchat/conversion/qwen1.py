"""Qwen-1 (Bai et al. 2023, arXiv:2309.16609; QwenLM/Qwen, modeling_qwen.py), loaded as Qwen2.

The two differ in names only: the activated half of the MLP is called w2, and query, key and value are one matrix.
"""

import base64
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import Qwen2Config, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from mmchat.conversation import DEFAULT_SLOTS
from mmchat.errors import UserError
from mmchat.vision.checkpoint_formats.base import rename_key, split_qkv

NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
RANKS_FILE = "qwen.tiktoken"
"""The tokenizer file: one base64 token and its rank per line."""
EXTRAS = 205
_BOXES = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
CONTROL = ("<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(EXTRAS)), *_BOXES)
"""Special tokens after <|endoftext|>, in order. Vary's slot tokens follow them (tokenization_qwen.py)."""
SLOT_IDS = {"<img>": 151857, "</img>": 151858, "<imgpad>": 151859}
"""Hard-coded in Vary's code."""

_NAMES = {
    "transformer.wte.": "language_model.model.embed_tokens.",
    "transformer.ln_f.": "language_model.model.norm.",
    "transformer.h.": "language_model.model.layers.",
    "lm_head.": "language_model.lm_head.",
}
_BLOCK = {
    ".ln_1.": ".input_layernorm.",
    ".ln_2.": ".post_attention_layernorm.",
    ".attn.c_proj.": ".self_attn.o_proj.",
    ".mlp.w1.": ".mlp.up_proj.",
    ".mlp.w2.": ".mlp.gate_proj.",
    ".mlp.c_proj.": ".mlp.down_proj.",
}


def language_config(values: dict[str, Any]) -> Qwen2Config:
    """`QWenConfig` as a Qwen2 config.

    The two agree up to `seq_length` tokens. Beyond that Qwen-1 stretches its rotary base (use_dynamic_ntk) and scales
    attention (use_logn_attn), which Qwen2 does not.

    Args:
        values: The values of Qwen-1's `config.json`, with the keys in `NEEDED`.

    Raises:
        UserError: Rotary positions cover only part of each head, or heads do not fill the hidden size.
    """
    heads, width = values["num_attention_heads"], values["hidden_size"]
    if values.get("rotary_pct", 1.0) != 1.0 or values.get("kv_channels", 128) * heads != width:
        raise UserError(
            f"this Qwen has rotary_pct {values.get('rotary_pct', 1.0)} and {heads} heads of kv_channels "
            f"{values.get('kv_channels', 128)} for a hidden size of {width}; expected rotary_pct 1.0 and "
            "heads that fill the hidden size, as in Qwen2"
        )
    return Qwen2Config(
        vocab_size=values["vocab_size"],
        hidden_size=width,
        intermediate_size=values["intermediate_size"] // 2,
        num_hidden_layers=values["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=values.get("seq_length", values.get("max_position_embeddings", 8192)),
        rms_norm_eps=values.get("layer_norm_epsilon", 1e-6),
        rope_parameters={"rope_type": "default", "rope_theta": float(values.get("rotary_emb_base", 10000))},
        tie_word_embeddings=values.get("tie_word_embeddings", False),
        use_sliding_window=False,
    )


def language_state(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename Qwen-1's keys to those of Qwen2 inside an assistant. Other keys are kept."""
    state = {}
    for key, tensor in tensors.items():
        name = rename_key(key, _NAMES, _BLOCK) if key.startswith(tuple(_NAMES)) else key
        block, fused, kind = name.partition(".attn.c_attn.")
        state |= split_qkv(f"{block}.self_attn.", kind, tensor) if fused else {name: tensor}
    return state


def tokenizer_from_ranks(ranks: Path) -> Qwen2Tokenizer:
    """Qwen's tokenizer with Vary's slot tokens, as transformers' Qwen2Tokenizer, which splits text the same way.

    White space after `</img>` is stripped, because Vary's demo asks directly after it (Ucas-HaoranWei/Vary,
    vary/demo/run_qwen_vary.py), and every question here has a line break there.

    Raises:
        UserError: The file does not hold base64 tokens and ranks.
    """
    vocabulary, merges = _RanksReader().extract_vocab_merges_from_model(str(ranks))
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    slots = [AddedToken(token, rstrip=token == DEFAULT_SLOTS.end, special=True) for token in SLOT_IDS]
    tokenizer.add_tokens([*CONTROL, *slots], special_tokens=True)
    return tokenizer


class _RanksReader(TikTokenConverter):
    """Reads the file without the tiktoken package."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        try:
            lines = (line.split() for line in Path(tiktoken_url).read_bytes().splitlines() if line)
            return {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
        except ValueError as error:
            raise UserError(f"{tiktoken_url} is not a list of base64 tokens and their ranks: {error}") from None
