"""Embeddings of all ranks on every rank, with gradients: what is contrasted is the batch of the whole step."""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F


def all_gather(own: torch.Tensor) -> tuple[torch.Tensor, int]:
    """float[n, ...] of this rank -> float[N, ...] of all ranks in their order, and at which row this rank's begin.

    Ranks may hold unequally many rows, or none. A gradient that reaches the rows of another rank is sent there and
    added up: where each rank's loss is its share of a sum, every rank gets the gradient of the whole sum. All ranks
    call this equally often, and in the backward, too. Without a process group it is `own`.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own, 0
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=own.device)
    counts[dist.get_rank()] = len(own)
    dist.all_reduce(counts)
    rows = counts.tolist()
    return _Gather.apply(own, rows), sum(rows[: dist.get_rank()])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, rows: list[int]) -> torch.Tensor:
        ctx.rows = rows
        # Collectives take equally long tensors.
        padded = F.pad(own, [0, 0] * (own.dim() - 1) + [0, max(rows) - len(own)])
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(ctx.rows)[dist.get_rank()], None
