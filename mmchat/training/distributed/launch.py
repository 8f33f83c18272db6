"""The launch of all ranks of one machine: their devices, and the command that starts them. Imports no torch.

`mmchat train` starts DeepSpeed's `launch` directly. The `deepspeed` command would start another process in between,
which takes device numbers only from its own options, deletes CUDA_VISIBLE_DEVICES beside them, and imports DeepSpeed
once more.
"""

import base64
import json
import os
import socket
import sys
from collections.abc import Mapping

from mmchat.cpu_settings import has_gpu, missing_settings
from mmchat.errors import UserError
from mmchat.training.distributed.signals import LAUNCH

ON_CPU = {"DS_ACCELERATOR": "cpu"}
"""DeepSpeed detects the same, but prints a warning."""


def rank_devices(ranks: int | None, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Device of each rank: an index or another name of a GPU, or the rank's number where there is no GPU.

    Args:
        ranks: Their number; None: one for each GPU that is visible, or one on the CPU.
        environment: CUDA_VISIBLE_DEVICES lists the GPUs that may be used.

    Raises:
        UserError: There are fewer GPUs than ranks.
    """
    visible = visible_gpus(environment)
    if not visible:
        return [str(rank) for rank in range(ranks or 1)]
    if ranks is not None and ranks > len(visible):
        listed = environment.get("CUDA_VISIBLE_DEVICES")
        where = "torch sees" if listed is None else f"CUDA_VISIBLE_DEVICES={listed} names"
        raise UserError(f"--ranks {ranks}: {where} {len(visible)} GPUs; every rank needs one of its own")
    return visible[:ranks]


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them; empty where there is none."""
    if not has_gpu(environment):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [name.strip() for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def launch_command(devices: list[str], module: str, arguments: list[str]) -> list[str]:
    """What starts `python -m module arguments` once for each device, as one rank each.

    DeepSpeed's own line about a rank that failed is left out: the rank has said why, and the caller sees the status.
    """
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()
    options = [f"--world_info={world}", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    return [sys.executable, "-u", "-m", LAUNCH, *options, "--log_level=critical", "--module", module, *arguments]


def launch_environment(ranks: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of the launcher and its ranks, with the settings for the CPU where there is no GPU."""
    on_cpu = {} if has_gpu(environment) else ON_CPU
    return {**on_cpu, **environment, **missing_settings(ranks, environment)}


def free_port() -> int:
    """A TCP port of the loopback interface that is not in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
