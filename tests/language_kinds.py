"""Tiny configs of the kinds of language models that something is promised for."""

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": {},
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "phi3": {"num_key_value_heads": 2, "pad_token_id": 0},
    "qwen2": {
        "layer_types": ["sliding_attention", "full_attention"],
        "use_sliding_window": True,
        "sliding_window": 8,
        "num_key_value_heads": 2,
    },
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
}
"""Changes of `SHAPE` by transformers' type."""
