"""Collectives over all ranks. Each also works without a process group, as a single rank."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from mmchat.errors import SharedError, UserError
from mmchat.training.distributed import process_group

Result = TypeVar("Result")
Group = dist.ProcessGroup
_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


def barrier() -> None:
    """Wait for all ranks."""
    if process_group.world_size() > 1:
        dist.barrier()


def all_reduce(values: torch.Tensor, operation: str = "sum") -> torch.Tensor:
    """Combine a small CPU tensor over all ranks; `operation` is sum or max."""
    if process_group.world_size() == 1:
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    moved = values.to(device, copy=True)
    dist.all_reduce(moved, _OPERATIONS[operation])
    return moved.cpu()


def all_gather_concat(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate the ranks' one-dimensional tensors of equal length, on every rank."""
    if process_group.world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(process_group.world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def all_gather(items: list, group: Group | None = None) -> list:
    """Concatenate the lists of all ranks, on every rank. Pickles: only for rare events."""
    if process_group.world_size() == 1:
        return items
    lists: list[list] = [[] for _ in range(process_group.world_size())]
    dist.all_gather_object(lists, items, group)
    return [item for of_rank in lists for item in of_rank]


def from_rank_0(work: Callable[[], Result]) -> Result:
    """Run `work` on rank 0 and return its result on every rank. Pickles: only for rare events.

    Raises:
        SharedError: `work` raised a UserError; raised on every rank.
    """
    results: list[Result | UserError] = []
    if process_group.rank() == 0:
        try:
            results = [work()]
        except UserError as error:
            results = [error]
    (result,) = all_gather(results)
    if isinstance(result, UserError):
        raise SharedError(str(result))
    return result


def background_group() -> Group | None:
    """A second process group of all ranks, for collectives of a thread that runs parallel to the loop."""
    return (
        dist.new_group(backend="gloo", timeout=process_group.LONGEST_WAIT) if process_group.world_size() > 1 else None
    )
