"""Rank, number of ranks and collectives. Everything also works without a process group, as a single rank."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from mmchat.errors import SharedError, UserError

Result = TypeVar("Result")
Group = dist.ProcessGroup
_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


def start() -> None:
    """Join the process group that the launcher announced, or create one with a single rank."""
    import deepspeed

    from mmchat.training.deepspeed_internals import disable_shared_memory_collectives

    disable_shared_memory_collectives()
    for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(key, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())
    if not dist.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def free_port() -> int:
    """A TCP port of the loopback interface that is not in use."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """Number of ranks (torch's world size)."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all ranks."""
    if ranks() > 1:
        dist.barrier()


def all_reduce(values: torch.Tensor, operation: str = "sum") -> torch.Tensor:
    """Combine a small CPU tensor over all ranks; `operation` is sum or max."""
    if ranks() == 1:
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    moved = values.to(device, copy=True)
    dist.all_reduce(moved, _OPERATIONS[operation])
    return moved.cpu()


def all_gather_concat(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate the ranks' one-dimensional tensors of equal length, on every rank."""
    if ranks() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(ranks())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def all_gather(items: list, group: Group | None = None) -> list:
    """Concatenate the lists of all ranks, on every rank. Pickles: only for rare events."""
    if ranks() == 1:
        return items
    lists: list[list] = [[] for _ in range(ranks())]
    dist.all_gather_object(lists, items, group)
    return [item for of_rank in lists for item in of_rank]


def from_rank_0(work: Callable[[], Result]) -> Result:
    """Run `work` on rank 0 and return its result on every rank. Pickles: only for rare events.

    Raises:
        SharedError: `work` raised a UserError; raised on every rank.
    """
    results: list[Result | UserError] = []
    if rank() == 0:
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
    return dist.new_group(backend="gloo", timeout=timedelta(days=1)) if ranks() > 1 else None
