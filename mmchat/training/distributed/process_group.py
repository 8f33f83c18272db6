"""The process group of a run: joined, left, this rank and the number of ranks. Without one there is a single rank."""

import os
from datetime import timedelta

import torch.distributed as dist

from mmchat.training.distributed.launch import free_port

LONGEST_WAIT = timedelta(days=1)
"""How long a rank waits for the others in a collective. Rank 0 may work alone for long: it measures lengths for
packing, and writes, opens and compares the final model. DeepSpeed's default of 10 minutes would end the run meanwhile.
That another rank has died is noticed by its closed connection and by the launcher, not by this limit."""


def start() -> None:
    """Join the process group that the launcher announced, or create one with a single rank."""
    import deepspeed

    from mmchat.training.deepspeed_internals import disable_shared_memory_collectives, make_groups_wait

    disable_shared_memory_collectives()
    for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(key, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())
    if not dist.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, timeout=LONGEST_WAIT)
        make_groups_wait(LONGEST_WAIT)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1
