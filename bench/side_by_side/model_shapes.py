"""Model sizes as arguments of transformers' configs, each named after a published model."""

from dataclasses import dataclass
from typing import Any

CLIP_B_16 = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 256,
    "patch_size": 16,
}
CLIP_L_14_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
# Without OPT's default dropout: with different noise A and B could not be compared.
OPT_125M = {"model_type": "opt", "vocab_size": 50272, "dropout": 0.0, "tie_word_embeddings": True}


def _llama(
    hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int, vocab_size: int, tied: bool
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 2048,
    }


@dataclass(frozen=True)
class Shape:
    """Arguments of transformers' configs, and the model that has this shape."""

    language: dict[str, Any]
    tower: dict[str, Any]
    named_after: str


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPES = {
    "0.1b": Shape(OPT_125M, CLIP_B_16, "OPT-125M, CLIP ViT-B/16 at 256"),
    "0.1b-smollm": Shape(_llama(576, 1536, 30, 9, 3, 49152, tied=True), CLIP_B_16, "SmolLM-135M, CLIP ViT-B/16 at 256"),
    "0.1b-llama": Shape(
        _llama(768, 2048, 12, 12, 12, 32000, tied=True), CLIP_B_16, "no model: Llama of 12 x 768, CLIP ViT-B/16 at 256"
    ),
    "1b": Shape(
        _llama(2048, 5632, 22, 32, 4, 32000, tied=False), CLIP_L_14_336, "TinyLlama-1.1B, CLIP ViT-L/14 at 336"
    ),
    "3b": Shape(_llama(3072, 8192, 28, 24, 8, 128256, tied=True), CLIP_L_14_336, "Llama-3.2-3B, CLIP ViT-L/14 at 336"),
    "7b": Shape(
        _llama(4096, 11008, 32, 32, 32, 32000, tied=False), CLIP_L_14_336, "LLaVA-1.5-7B (Vicuna, CLIP ViT-L/14 at 336)"
    ),
    "tiny": Shape(
        # A wide initialisation, so that gradients are large enough to be clipped.
        _llama(32, 64, 2, 4, 2, 200, tied=False) | {"initializer_range": 0.5},
        {**TINY, "intermediate_size": 64, "image_size": 28, "patch_size": 7},
        "no model; for the tests of the benchmarks",
    ),
}
