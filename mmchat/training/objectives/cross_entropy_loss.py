"""Cross-entropy of many logits without a copy of them in full precision.

At a vocabulary of 50,000 to 250,000 tokens logits are a step's largest tensors, and torch holds them three times: as
they are, in fp32, and as their gradient. Here they are held once: a few rows at a time are converted to fp32, and the
backward writes their gradient over them.
"""

import torch

CHUNK = 2**21
"""Logits converted at a time: 8 MiB of fp32."""


def cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over rows of -log softmax(logits)[target], in fp32.

    The backward overwrites `logits`. Autograd raises if they are used afterwards, or in a second backward.

    Args:
        logits: float[n, V].
        targets: int[n].
    """
    return _CrossEntropySum.apply(logits, targets)


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets):
        normalisers = logits.new_empty(len(logits), dtype=torch.float32)
        total = normalisers.new_zeros(())
        for rows in _chunks(logits):
            exact = logits[rows].float()
            normalisers[rows] = exact.logsumexp(dim=1)
            total += (normalisers[rows] - exact.gather(1, targets[rows, None]).squeeze(1)).sum()
        ctx.save_for_backward(logits, targets, normalisers)
        return total

    @staticmethod
    def backward(ctx, gradient):
        logits, targets, normalisers = ctx.saved_tensors
        for rows in _chunks(logits):
            exact = (logits[rows].float() - normalisers[rows, None]).exp_()
            exact.scatter_add_(1, targets[rows, None], exact.new_full((len(exact), 1), -1.0))
            logits[rows] = exact.mul_(gradient)
        return logits, None


def _chunks(logits: torch.Tensor) -> list[slice]:
    rows = max(1, CHUNK // logits.shape[1])
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]
