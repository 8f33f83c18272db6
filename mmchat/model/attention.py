"""How attention is computed, chosen by what is asked and where.

A packed row is one in which samples lie one behind another: each is attended to by itself, so that none sees another
and no mask is made. Transformers hands a mask of four dimensions through to the attention function as it is, in every
kind of language model. So that is how a row's lengths get there: as an int32 tensor in the mask's place, which any
other attention function would refuse.
"""

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmchat.errors import UserError
from mmchat.model.short_attention import is_faster, short_attention

NAME = "mmchat"
PACKABLE = {"gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3"}
"""transformers' types for which the tests show that a packed sample computes what it computes alone."""


def enable_packing(language_model: PreTrainedModel) -> None:
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
    use_fast_attention(language_model)


def use_fast_attention(model: PreTrainedModel) -> None:
    """Of a language model or of a tower's backbone; what it computes differs by rounding only."""
    model.set_attn_implementation(NAME)


def packed_inputs(lengths: list[int], device: torch.device) -> dict[str, torch.Tensor]:
    """What a language model must be told of a row int[1, L] in which samples of these lengths lie one behind another.

    The lengths stay on the CPU, where they say how to cut.
    """
    positions = torch.cat([torch.arange(length) for length in lengths])
    return {
        "attention_mask": torch.tensor(lengths, dtype=torch.int32).view(1, 1, 1, -1),
        "position_ids": positions.unsqueeze(0).to(device, non_blocking=True),
    }


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """query: float[B, heads, L, D], key and value with as many heads or fewer -> float[B, L, heads, D].

    attention_mask: int32[1, 1, 1, samples] with the lengths of a packed row, or what transformers' SDPA takes.
    """
    options = {"dropout": dropout, "scaling": scaling, **kwargs}
    if attention_mask is not None and attention_mask.dtype == torch.int32:
        return _packed(module, query, key, value, attention_mask.flatten(), sliding_window, options), None
    sees_all = attention_mask is None and not kwargs.get("is_causal", getattr(module, "is_causal", True))
    if sees_all and is_faster(query, query.shape[2], dropout):
        rows, lengths = query.shape[0], [query.shape[2]] * query.shape[0]
        in_a_row = (states.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None] for states in (query, key, value))
        return short_attention(*in_a_row, lengths, scaling, causal=False).unflatten(1, (rows, -1))[0], None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _packed(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    on_cpu: torch.Tensor,
    window: int | None,
    options: dict,
) -> torch.Tensor:
    """float[1, heads, L, D] in, float[1, L, heads, D] out; on_cpu: int32[samples], how long they are."""
    lengths = on_cpu.tolist()
    if is_faster(query, max(lengths), options["dropout"]):
        return short_attention(query, key, value, lengths, options["scaling"], causal=True, window=window)
    if query.is_cuda and query.dtype != torch.float32 and not options["dropout"]:
        ends = pad(on_cpu.cumsum(0, dtype=torch.int32), (1, 0)).to(query.device, non_blocking=True)
        states = (states[0].transpose(0, 1) for states in (query, key, value))
        seen = (-1 if window is None else window - 1, 0)
        shared = {"scale": options["scaling"], "window_size": seen, "enable_gqa": key.shape[1] != query.shape[1]}
        return varlen_attn(*states, ends, ends, max(lengths), max(lengths), **shared)[None]
    samples = zip(lengths, *(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs = [
        sdpa_attention_forward(module, *states, _window(length, window, query.device), **options)[0]
        for length, *states in samples
    ]
    return torch.cat(outputs, dim=1)


def _window(length: int, size: int | None, device: torch.device) -> torch.Tensor | None:
    """bool[length, length]: each token sees itself and what is before it, `size` in all; None where those are all."""
    if size is None or length <= size:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - size)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
