"""Qwen's first version (Bai et al. 2023, arXiv:2309.16609; QwenLM/Qwen, modeling_qwen.py), which is Qwen2 under other
names: the activated half of the MLP is called w2, and query, key and value are one matrix."""

import base64
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from mmchat.conversion.formats.base import open_words as open_known_words
from mmchat.errors import UserError
from mmchat.vision.checkpoint_formats import openai
from mmchat.vision.checkpoint_formats.weight_files import Source

NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
RANKS = "qwen.tiktoken"
"""Its tokenizer's file: a token in base64 and its rank on each line."""
EXTRAS = 205
_BOXES = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
CONTROL = ("<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(EXTRAS)), *_BOXES)
"""Tokens that follow <|endoftext|>, in order; Vary's three for slots come after them (tokenization_qwen.py)."""
SLOT_IDS = {"<img>": 151857, "</img>": 151858, "<imgpad>": 151859}
"""Those that Vary's code takes without asking its config."""

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
    """`QWenConfig` as Qwen2's. The same up to `seq_length` tokens: beyond them Qwen stretches its rotary base
    (use_dynamic_ntk) and sharpens attention (use_logn_attn), and this does not.

    Raises:
        UserError: rotary positions of a part of each head, or heads of a width of their own, which Qwen2 has not.
    """
    heads, width = values["num_attention_heads"], values["hidden_size"]
    if values.get("rotary_pct", 1.0) != 1.0 or values.get("kv_channels", 128) * heads != width:
        raise UserError(
            f"this Qwen has rotary_pct {values.get('rotary_pct', 1.0)} and {heads} heads of kv_channels "
            f"{values.get('kv_channels', 128)} in a width of {width}; expected rotary_pct 1.0 and heads that fill it"
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
    """Keys of Qwen's as Qwen2's inside an assistant; others stay."""
    state = {}
    for key, tensor in tensors.items():
        name = openai.renamed(key, _NAMES, _BLOCK) if key.startswith(tuple(_NAMES)) else key
        block, fused, kind = name.partition(".attn.c_attn.")
        state |= openai.split(f"{block}.self_attn.", kind, tensor) if fused else {name: tensor}
    return state


def open_words(source: Source, tokenizer: str | None) -> Any:
    """The tokenizer: its own file of ranks, or one that transformers knows."""
    ranks = source.path / RANKS
    if tokenizer is None and ranks.exists():
        return tokenizer_of(ranks)
    return open_known_words(source, tokenizer)


def tokenizer_of(ranks: Path) -> Qwen2Tokenizer:
    """Qwen's tokenizer with Vary's tokens, as transformers' Qwen2Tokenizer, which splits text alike."""
    vocabulary, merges = _Ranks().extract_vocab_merges_from_model(str(ranks))
    words = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    words.add_tokens([*CONTROL, *SLOT_IDS], special_tokens=True)
    return words


class _Ranks(TikTokenConverter):
    """Reads the file without the package tiktoken."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        try:
            lines = (line.split() for line in Path(tiktoken_url).read_bytes().splitlines() if line)
            return {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
        except ValueError as error:
            raise UserError(f"{tiktoken_url} is no list of tokens in base64 and their ranks: {error}") from None
