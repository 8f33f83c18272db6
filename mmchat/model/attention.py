"""The attention function `mmchat`: packed rows, short sequences and decode steps on a CPU, and SDPA for the rest.

A packed row is several samples concatenated. Attention runs per sample, so samples do not attend to each other and no
mask is built. Transformers passes a 4D mask to the attention function unchanged, in every language model. So the sample
lengths of a packed row are passed as an int32 tensor in place of the mask, which any other attention function refuses.
"""

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmchat.errors import UserError
from mmchat.model.decode_attention import applies, decode_attention
from mmchat.model.short_attention import is_faster, short_attention

NAME = "mmchat"
PACKABLE = {"gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3"}
"""Values of `model_type` for which tests show that a packed sample computes what it computes alone."""

OWN_SCORES = {"position_bias", "softcap"}
"""Arguments of transformers' attention functions that change scores."""


def enable_packing(language_model: PreTrainedModel) -> None:
    """Let a language model take `packed_inputs`. With ordinary masks its outputs do not change.

    Raises:
        UserError: Isolation of samples is not tested for this kind of model.
    """
    kind = language_model.config.model_type
    if kind not in PACKABLE:
        known = ", ".join(sorted(PACKABLE))
        raise UserError(
            f"packing is tested to keep samples apart in {known}, but not in {kind}; set "
            "objective.packing.padded: true, which pads samples of similar length together"
        )
    use_fast_attention(language_model)


def use_fast_attention(model: PreTrainedModel) -> None:
    """Set this attention in a language model or a tower's backbone. Outputs change by rounding only."""
    model.set_attn_implementation(NAME)


def packed_inputs(lengths: list[int], device: torch.device) -> dict[str, torch.Tensor]:
    """`attention_mask` and `position_ids` for one packed row.

    Args:
        lengths: Lengths of the samples, L in all.
        device: Device of the positions. The lengths stay on the CPU, where they are used to split the row.

    Returns:
        `attention_mask`: int32[1, 1, 1, samples], the lengths. `position_ids`: int64[1, L], from 0 for each sample.
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
    """An attention function as `transformers.AttentionInterface` expects it.

    Args:
        module: The attention layer.
        query: float[B, heads, L, D].
        key: float[B, groups, L, D], each group for heads / groups heads.
        value: As `key`.
        attention_mask: int32[1, 1, 1, samples] with the lengths of a packed row, or what transformers' SDPA takes.
        dropout: Dropout of attention weights.
        scaling: Scale of the scores.
        sliding_window: How many tokens a token attends to, itself included. Used for packed rows; elsewhere the mask
            has it.
        **kwargs: Passed to transformers' SDPA.

    Returns:
        float[B, L, heads, D], and None for the attention weights.
    """
    options = {"dropout": dropout, "scaling": scaling, **kwargs}
    query, key, value = (_autocast(states) for states in (query, key, value))
    if attention_mask is not None and attention_mask.dtype == torch.int32:
        return _packed(module, query, key, value, attention_mask.flatten(), sliding_window, options), None
    unmasked = attention_mask is None and not kwargs.get("is_causal", getattr(module, "is_causal", True))
    if unmasked and is_faster(query, query.shape[2], dropout):
        rows, lengths = query.shape[0], [query.shape[2]] * query.shape[0]
        concatenated = (states.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None] for states in (query, key, value))
        return short_attention(*concatenated, lengths, scaling, causal=False).unflatten(1, (rows, -1))[0], None
    if attention_mask is not None and applies(query, attention_mask, dropout) and not kwargs.keys() & OWN_SCORES:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return decode_attention(query, key, value, attention_mask, scale), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _autocast(states: torch.Tensor) -> torch.Tensor:
    """In autocast's dtype, as SDPA would take them: rotary positions leave queries and keys in fp32."""
    kind = states.device.type
    return states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states


def _packed(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cpu_lengths: torch.Tensor,
    window: int | None,
    options: dict,
) -> torch.Tensor:
    """float[1, heads, L, D] -> float[1, L, heads, D]; cpu_lengths: int32[samples]."""
    lengths = cpu_lengths.tolist()
    if is_faster(query, max(lengths), options["dropout"]):
        return short_attention(query, key, value, lengths, options["scaling"], causal=True, window=window)
    if query.is_cuda and query.dtype != torch.float32 and not options["dropout"]:
        ends = pad(cpu_lengths.cumsum(0, dtype=torch.int32), (1, 0)).to(query.device, non_blocking=True)
        states = (states[0].transpose(0, 1) for states in (query, key, value))
        return varlen_attn(
            *states,
            ends,
            ends,
            max(lengths),
            max(lengths),
            scale=options["scaling"],
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=key.shape[1] != query.shape[1],
        )[None]
    samples = zip(lengths, *(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs = [
        sdpa_attention_forward(module, *states, _window(length, window, query.device), **options)[0]
        for length, *states in samples
    ]
    return torch.cat(outputs, dim=1)


def _window(length: int, size: int | None, device: torch.device) -> torch.Tensor | None:
    """Causal sliding-window mask bool[length, length]; None if the window covers the whole sample."""
    if size is None or length <= size:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - size)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
