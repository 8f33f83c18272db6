"""Attention for short samples on a CPU: scores are written out, and computed again in the backward.

torch's flash attention for the CPU takes two to three times as long in bf16 where samples have a few hundred tokens
(bench/attention.py), because it does not use the fast matrix products. These do, for so many heads at a time that what
is written out stays in the cache. Scores are rounded to bf16 before the softmax, as in transformers' own `eager`
attention; that errs about as much as the rounding of queries and keys that came before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

MAX_LENGTH = 1024
"""Tokens of a sample up to which this was faster than torch's flash attention."""
BLOCK_SCORES = 2**20
"""Scores at a time: 2 MiB of bf16, what two cores have of second-level cache."""


_allowed = ContextVar("short attention", default=True)


def is_faster(query: torch.Tensor, longest: int, dropout: float) -> bool:
    where = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return where and longest <= MAX_LENGTH and not dropout and _allowed.get()


@contextmanager
def fused_kernels_only() -> Iterator[None]:
    """Within, a CPU attends by the kernels that a GPU has as well: a plan made on the one is for the other."""
    before = _allowed.set(False)
    yield
    _allowed.reset(before)


def short_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    scale: float,
    causal: bool,
    window: int | None = None,
) -> torch.Tensor:
    """Each sample attends to itself alone.

    Args:
        query: bf16[1, heads, L, D]; key, value: bf16[1, groups, L, D], each for heads / groups heads.
        lengths: of the samples that lie one behind another, L in all.
        window: how many tokens a token sees at most, itself included; None: all before it.

    Returns:
        bf16[1, L, heads, D].
    """
    return _ShortAttention.apply(query, key, value, lengths, scale, causal, window)


class _ShortAttention(torch.autograd.Function):
    """Weights in bf16 do not add up to one. What they lack would weigh the whole of what values have in common, beside
    which the gradient of a score may be small; so their sums are kept and divided by, and that gradient is centred."""

    @staticmethod
    def forward(ctx, query, key, value, lengths, scale, causal, window):
        output = torch.empty_like(query.transpose(1, 2))
        sums = query.new_empty(query.shape[1], query.shape[2], dtype=torch.float32)
        for place, mask in _samples(query, lengths, causal, window):
            q, k, v = _by_group(query, key, place), key[0, :, place].contiguous(), value[0, :, place].contiguous()
            attended, total = torch.empty_like(q), sums.new_empty(*q.shape[:2], 1)
            for some in _parts(q, k):
                weights = _weights(q[some], k[some], scale, mask)
                torch.sum(weights, -1, keepdim=True, dtype=torch.float32, out=total[some])
                torch.bmm(weights, v[some], out=attended[some])
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
        of_query, of_key, of_value = (torch.empty_like(states) for states in (query, key, value))
        for place, mask in _samples(query, lengths, causal, window):
            q, g, mean = (_by_group(states, key, place) for states in (query, gradient, means))
            k, v = key[0, :, place].contiguous(), value[0, :, place].contiguous()
            for_q, for_k, for_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
            for some in _parts(q, k):
                weights = _weights(q[some], k[some], scale, mask)
                torch.bmm(weights.transpose(1, 2), g[some], out=for_v[some])
                centred = torch.baddbmm(mean[some].expand_as(weights), g[some], v[some].transpose(1, 2), beta=-1)
                of_scores = torch._softmax_backward_data(centred, weights, -1, weights.dtype)
                torch.bmm(of_scores, k[some], out=for_q[some])
                torch.bmm(of_scores.transpose(1, 2), q[some], out=for_k[some])
            of_query[0, :, place] = for_q.mul_(scale).view(query.shape[1], -1, query.shape[3])
            of_key[0, :, place], of_value[0, :, place] = for_k.mul_(scale), for_v
        return of_query, of_key, of_value, None, None, None, None


def _samples(query: torch.Tensor, lengths: list[int], causal: bool, window: int | None):
    """Where each sample lies, and what is added to its scores: bf16[length, length], None where all see all."""
    longest, start, mask = max(lengths), 0, None
    if causal:
        visible = torch.ones(longest, longest, dtype=torch.bool).tril().triu(1 - (window or longest))
        mask = query.new_zeros(longest, longest).masked_fill_(~visible, -torch.inf)
    for length in lengths:
        yield slice(start, start + length), None if mask is None else mask[:length, :length]
        start += length


def _by_group(states: torch.Tensor, key: torch.Tensor, place: slice) -> torch.Tensor:
    """One sample's queries (or what is shaped like them): [groups, heads / groups * length, D]."""
    return states[0, :, place].contiguous().view(key.shape[1], -1, states.shape[3])


def _parts(q: torch.Tensor, k: torch.Tensor) -> list[slice]:
    """Groups of heads that are computed together."""
    together = max(1, BLOCK_SCORES // (q.shape[1] * k.shape[1]))
    return [slice(start, start + together) for start in range(0, len(q), together)]


def _weights(q: torch.Tensor, k: torch.Tensor, scale: float, mask: torch.Tensor | None) -> torch.Tensor:
    """Softmax of the scores, [groups, heads / groups * length, length]."""
    if mask is None:
        scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale)
    else:
        below = mask.repeat(q.shape[1] // len(mask), 1).expand(len(q), -1, -1)
        scores = torch.baddbmm(below, q, k.transpose(1, 2), alpha=scale)
    return scores.softmax(-1)
