"""Differentiable all-gather of embeddings, so that the contrastive loss sees the batch of the whole step."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

_PLANNED_RANKS: ContextVar[int] = ContextVar("planned_ranks", default=1)


@contextmanager
def planned_ranks(ranks: int) -> Iterator[None]:
    """Inside the `with`, and without a process group, `all_gather` gives as many rows as `ranks` ranks would.

    For `mmchat plan`, which needs the shapes of a run that is not started.
    """
    token = _PLANNED_RANKS.set(ranks)
    try:
        yield
    finally:
        _PLANNED_RANKS.reset(token)


def all_gather(local: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Gather the rows of all ranks, in order of rank.

    Ranks may hold different numbers of rows, or none. The backward sums the gradients of all ranks: if the total loss
    is the sum of the ranks' losses, every rank gets its gradient. All ranks must call this equally often, in the
    backward too.

    Args:
        local: Rows of this rank: float[n, ...].

    Returns:
        Rows of all ranks, float[N, ...], and the index of this rank's first row. Without a process group, `local` and
        0.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        ranks = _PLANNED_RANKS.get()
        return (local if ranks == 1 else torch.cat([local] * ranks)), 0
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=local.device)
    counts[dist.get_rank()] = len(local)
    dist.all_reduce(counts)
    rows = counts.tolist()
    return _Gather.apply(local, rows), sum(rows[: dist.get_rank()])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, rows: list[int]) -> torch.Tensor:
        ctx.rows = rows
        # Collectives need tensors of one size.
        padded = F.pad(local, [0, 0] * (local.dim() - 1) + [0, max(rows) - len(local)])
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(ctx.rows)[dist.get_rank()], None
