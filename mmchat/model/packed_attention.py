"""Attention over a packed row: each sample is attended to by itself, so that none sees another and no mask is made.

Transformers hands a mask of four dimensions through to the attention function as it is, in every kind of language
model. So that is how a row's lengths get there: as an int32 tensor in the mask's place, which any other attention
function would refuse.
"""

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmchat.errors import UserError

PACKED_SDPA = "packed_sdpa"
PACKABLE = {"gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3"}
"""transformers' types for which the tests show that a packed sample computes what it computes alone."""


def enable_packing(language_model: nn.Module) -> None:
    """Let a language model take `packed_inputs`; with ordinary masks it computes what it did.

    Raises:
        UserError: it is of a kind for which isolation was never shown.
    """
    kind = language_model.config.model_type
    if kind not in PACKABLE:
        known = ", ".join(sorted(PACKABLE))
        raise UserError(
            f"packing was shown to keep samples apart in {known}, but not in {kind}; set packing.padded: true, which "
            "pads samples of like length together"
        )
    language_model.set_attn_implementation(PACKED_SDPA)


def packed_inputs(lengths: list[int], device: torch.device) -> dict[str, torch.Tensor]:
    """What a language model must be told of a row int[1, L] in which samples of these lengths lie one behind another.

    The lengths stay on the CPU, where they say how to cut.
    """
    positions = torch.cat([torch.arange(length) for length in lengths])
    return {
        "attention_mask": torch.tensor(lengths, dtype=torch.int32).view(1, 1, 1, -1),
        "position_ids": positions.unsqueeze(0).to(device, non_blocking=True),
    }


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """query, key, value: float[1, heads, L, D] and `attention_mask` int32[1, 1, 1, samples] -> float[1, L, heads, D].

    With any other mask it is transformers' SDPA.
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths = attention_mask.flatten().tolist()
    samples = zip(lengths, *(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs = [
        sdpa_attention_forward(module, *states, _window(length, sliding_window, query.device), **kwargs)[0]
        for length, *states in samples
    ]
    return torch.cat(outputs, dim=1), None


def _window(length: int, size: int | None, device: torch.device) -> torch.Tensor | None:
    """bool[length, length]: each token sees itself and what is before it, `size` in all; None where those are all."""
    if size is None or length <= size:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - size)


AttentionInterface.register(PACKED_SDPA, packed_attention)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
