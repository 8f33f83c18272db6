"""Attention for short samples in bf16 on a CPU. Scores are materialised, and recomputed in the backward.

torch's flash attention for the CPU takes two to three times as long in bf16 for samples of a few hundred tokens
(bench/attention.py), because it does not use the fast bf16 matrix products; with AMX its forward does, but not its
backward. This does, for as many heads at a time as keep the scores in the cache. Scores are rounded to bf16 before the
softmax, as in transformers' `eager` attention; the error is about that of rounding queries and keys to bf16.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

MAX_LENGTH = 1024
"""Longest sample, in tokens, for which this was faster than torch's flash attention."""
BLOCK_SCORES = 2**20
"""Scores computed at a time: 2 MiB of bf16, the L2 cache of two cores."""


_allowed = ContextVar("short attention", default=True)


def is_faster(query: torch.Tensor, longest: int, dropout: float) -> bool:
    """Whether to use `short_attention` for samples of up to `longest` tokens."""
    supported = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if torch.is_inference_mode_enabled() and torch.cpu._is_amx_tile_supported():  # torch's forward alone is faster
        return False
    return supported and longest <= MAX_LENGTH and not dropout and _allowed.get()


@contextmanager
def fused_kernels_only() -> Iterator[None]:
    """Inside this context a CPU uses the attention kernels that a GPU has too. `mmchat plan` needs it."""
    token = _allowed.set(False)
    yield
    _allowed.reset(token)


def short_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    scale: float,
    causal: bool,
    window: int | None = None,
) -> torch.Tensor:
    """Attention within each of several concatenated samples.

    Args:
        query: bf16[1, heads, L, D].
        key: bf16[1, groups, L, D], each group for heads / groups heads.
        value: As `key`.
        lengths: Lengths of the samples, L in all.
        scale: Scale of the scores.
        causal: Tokens attend to themselves and earlier tokens only.
        window: How many tokens a token attends to at most, itself included. None: all earlier tokens.

    Returns:
        bf16[1, L, heads, D].
    """
    return _ShortAttention.apply(query, key, value, lengths, scale, causal, window)


class _ShortAttention(torch.autograd.Function):
    """Softmax weights rounded to bf16 do not sum to one.

    The missing part multiplies the mean of the values, which can exceed a score's gradient. So the row sums are kept
    and divided by, and the gradient of the scores is centred.
    """

    @staticmethod
    def forward(ctx, query, key, value, lengths, scale, causal, window):
        output = torch.empty_like(query.transpose(1, 2))
        sums = query.new_empty(query.shape[1], query.shape[2], dtype=torch.float32)
        for place, mask in _samples(query, lengths, causal, window):
            q, k, v = _by_group(query, key, place), key[0, :, place].contiguous(), value[0, :, place].contiguous()
            attended, total = torch.empty_like(q), sums.new_empty(*q.shape[:2], 1)
            for group in _head_groups(q, k):
                weights = _weights(q[group], k[group], scale, mask)
                torch.sum(weights, -1, keepdim=True, dtype=torch.float32, out=total[group])
                torch.bmm(weights, v[group], out=attended[group])
            output[0, place].transpose(0, 1).copy_((attended / total).view(query.shape[1], -1, query.shape[3]))
            sums[:, place] = total.view(query.shape[1], -1)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.settings = lengths, scale, causal, window
        return output

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, output, sums = ctx.saved_tensors
        lengths, scale, causal, window = ctx.settings
        gradient = (gradient.transpose(1, 2) / sums.unsqueeze(-1)).to(query.dtype)
        means = torch.linalg.vecdot(gradient, output.transpose(1, 2)).unsqueeze(-1)
        grad_query, grad_key, grad_value = (torch.empty_like(states) for states in (query, key, value))
        for place, mask in _samples(query, lengths, causal, window):
            q, g, mean = (_by_group(states, key, place) for states in (query, gradient, means))
            k, v = key[0, :, place].contiguous(), value[0, :, place].contiguous()
            grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
            for group in _head_groups(q, k):
                weights = _weights(q[group], k[group], scale, mask)
                torch.bmm(weights.transpose(1, 2), g[group], out=grad_v[group])
                centred = torch.baddbmm(mean[group].expand_as(weights), g[group], v[group].transpose(1, 2), beta=-1)
                grad_scores = torch._softmax_backward_data(centred, weights, -1, weights.dtype)
                torch.bmm(grad_scores, k[group], out=grad_q[group])
                torch.bmm(grad_scores.transpose(1, 2), q[group], out=grad_k[group])
            grad_query[0, :, place] = grad_q.mul_(scale).view(query.shape[1], -1, query.shape[3])
            grad_key[0, :, place], grad_value[0, :, place] = grad_k.mul_(scale), grad_v
        return grad_query, grad_key, grad_value, None, None, None, None


def _samples(query: torch.Tensor, lengths: list[int], causal: bool, window: int | None):
    """Position of each sample, and the mask added to its scores: bf16[length, length], or None if not causal."""
    longest, start, mask = max(lengths), 0, None
    if causal:
        visible = torch.ones(longest, longest, dtype=torch.bool).tril().triu(1 - (window or longest))
        mask = query.new_zeros(longest, longest).masked_fill_(~visible, -torch.inf)
    for length in lengths:
        yield slice(start, start + length), None if mask is None else mask[:length, :length]
        start += length


def _by_group(states: torch.Tensor, key: torch.Tensor, place: slice) -> torch.Tensor:
    """One sample of a tensor shaped like the queries: [groups, heads / groups * length, D]."""
    return states[0, :, place].contiguous().view(key.shape[1], -1, states.shape[3])


def _head_groups(q: torch.Tensor, k: torch.Tensor) -> list[slice]:
    """Groups of heads that are computed together."""
    group_count = max(1, BLOCK_SCORES // (q.shape[1] * k.shape[1]))
    return [slice(start, start + group_count) for start in range(0, len(q), group_count)]


def _weights(q: torch.Tensor, k: torch.Tensor, scale: float, mask: torch.Tensor | None) -> torch.Tensor:
    """Softmax of the scores, [groups, heads / groups * length, length]."""
    if mask is None:
        scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale)
    else:
        bias = mask.repeat(q.shape[1] // len(mask), 1).expand(len(q), -1, -1)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    return scores.softmax(-1)
