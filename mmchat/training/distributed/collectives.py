"""Ranks: who am I, and the few collectives that the loop itself needs. Works without a process group, too."""

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
    """Join the process group that the launcher announced, or form one of a single rank."""
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
    """A TCP port on the loopback that nobody listens on now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
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


def all_gather_concat(part: torch.Tensor) -> torch.Tensor:
    """The ranks' equally long one-dimensional tensors, one after another, on every rank."""
    if ranks() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(ranks())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def all_gather(items: list, group: Group | None = None) -> list:
    """The lists of all ranks, one after another, on every rank. For rare events: it pickles."""
    if ranks() == 1:
        return items
    found: list[list] = [[] for _ in range(ranks())]
    dist.all_gather_object(found, items, group)
    return [item for part in found for item in part]


def from_rank_0(work: Callable[[], Result]) -> Result:
    """What `work` gives on rank 0, on every rank. For rare events: it pickles.

    Raises:
        SharedError: `work` ended with a UserError.
    """
    answers: list[Result | UserError] = []
    if rank() == 0:
        try:
            answers = [work()]
        except UserError as error:
            answers = [error]
    (answer,) = all_gather(answers)
    if isinstance(answer, UserError):
        raise SharedError(str(answer))
    return answer


def background_group() -> Group | None:
    """All ranks once more, on connections of their own: for collectives of one thread beside those of the loop."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=1)) if ranks() > 1 else None
