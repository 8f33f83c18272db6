"""What a run config needs of the machine: a GPU, or a package of an extra."""

import torch

from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.training.config import BITSANDBYTES_OPTIMIZERS, PAGED_OPTIMIZERS, RunConfig


def check_hardware(config: RunConfig) -> list[str]:
    """Check that this machine can do what the config asks.

    Returns:
        A line for each thing that works here, but is not meant for it.

    Raises:
        UserError: A package or a GPU is missing.
    """
    name, cuda = config.optimizer.name, torch.cuda.is_available()
    if name in BITSANDBYTES_OPTIMIZERS or config.quantize is not None:
        require("bitsandbytes")
    if name in PAGED_OPTIMIZERS and not cuda:
        other = "adamw_8bit" if name == "paged_adamw_8bit" else "adamw"
        raise UserError(
            f"optimizer.name {name} moves moments between a GPU and CPU memory, and there is no CUDA device; "
            f"use {other}"
        )
    if config.fused_kernels == "liger":
        if not cuda:
            raise UserError("fused_kernels: liger runs on CUDA, and there is no CUDA device; leave it out")
        require("liger_kernel")
    notes = []
    if config.quantize is not None and not cuda:
        notes.append(
            f"quantize {config.quantize} without a GPU: every layer is dequantized in every forward and backward, "
            "which is slower than weights in full; use it to try a config out"
        )
    return notes
