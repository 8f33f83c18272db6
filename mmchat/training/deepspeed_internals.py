"""Every private or undocumented name of DeepSpeed that mmchat depends on, each with its reason.

Import these names from here, nowhere else. They were read in DeepSpeed 0.19.8; importing this module fails under a
version outside `SUPPORTED`. tests/training/test_deepspeed_internals.py fails if a name or signature has changed.
The two modules of DeepSpeed's launcher are named in `training.distributed.signals`, which must load without DeepSpeed.
"""

from argparse import Namespace
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
from deepspeed.comm import comm
from deepspeed.comm.torch import TorchBackend
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.torch_autocast import LOWER_PRECISION_SAFE_MODULES
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig, ZeroStageEnum
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from deepspeed.utils.tensor_fragment import fragment_address
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import nn

from mmchat.errors import UserError

__all__ = [
    # Classes whose weights autocast rounds, so that their gradients are bf16 (planning.memory).
    "LOWER_PRECISION_SAFE_MODULES",
    # Defaults of reduce_bucket_size, max_live_parameters and overlap_comm (planning.memory).
    "DeepSpeedZeroConfig",
    # One of the three types, besides tensors and plain values, that DeepSpeed pickles into a checkpoint.
    "LossScaler",
    # Base class of our checkpoint engine (checkpoints.storage), which adds checksums and refuses pickled code.
    "TorchCheckpointEngine",
    # The second type that DeepSpeed pickles into a checkpoint.
    "ZeroStageEnum",
    # The third.
    "fragment_address",
    # Reads full weights from a ZeRO 3 checkpoint without an engine (replay).
    "get_fp32_state_dict_from_zero_checkpoint",
    # Whether ZeRO 3 shards a parameter; such a parameter has ds_shape and ds_tensor.
    "is_zero_param",
    # What replaces F.linear under ZeRO 3 and decides which activations are kept (planning.activations).
    "zero3_linear_wrap",
]

SUPPORTED = ((0, 19, 8), (0, 20))
"""Versions from the first up to, but without, the second; the same range as in pyproject.toml."""


def check_version(version: str) -> None:
    """Refuse a DeepSpeed whose internals may differ.

    Raises:
        UserError: `version` is outside `SUPPORTED`.
    """
    oldest, end = SUPPORTED
    release = tuple(int(number) for number in version.split("+")[0].split(".")[:3] if number.isdigit())
    if not oldest <= release < end:
        needed = f">={'.'.join(map(str, oldest))},<{'.'.join(map(str, end))}"
        raise UserError(f"deepspeed {needed} is required, found {version}; run `pip install 'deepspeed{needed}'`")


check_version(deepspeed.__version__)


def disable_shared_memory_collectives() -> None:
    """Declare DeepSpeed's shared-memory operator unavailable; there is no setting for it.

    The CPU backend compiles that operator at start-up and fails without a compiler. gloo does the same work.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class _PatientBackend(TorchBackend):
    """DeepSpeed's communication, whose further groups wait as long as the group of all ranks."""

    def __init__(self, longest_wait: timedelta) -> None:
        super().__init__(torch.distributed.get_backend(), longest_wait, init_method=None)
        self._longest_wait = longest_wait

    def new_group(self, ranks: Iterable[int]) -> torch.distributed.ProcessGroup:
        return torch.distributed.new_group(ranks, timeout=self._longest_wait)


def make_groups_wait(longest_wait: timedelta) -> None:
    """Let every group that DeepSpeed makes from now on wait so long in a collective.

    `init_distributed(timeout=)` is about the group of all ranks only. An engine reduces in groups of its own, which
    `TorchBackend.new_group` makes with torch's default, 10 minutes for NCCL and 30 for gloo. Call it after
    `init_distributed`.
    """
    comm.cdb = _PatientBackend(longest_wait)


def disable_backward_reduction(engine: deepspeed.DeepSpeedEngine) -> None:
    """Without ZeRO: do not all-reduce gradients in `engine.backward`; `reduce_gradients` does it once per step."""
    engine.enable_backward_allreduce = False


def reduce_gradients(engine: deepspeed.DeepSpeedEngine, bucket_size: int) -> None:
    """Without ZeRO: average gradients over ranks, `bucket_size` elements at a time."""
    engine.allreduce_gradients(bucket_size)


def grad_norm_of_step(engine: deepspeed.DeepSpeedEngine) -> float:
    """The norm that ZeRO computed for the step in progress; `engine.get_global_grad_norm` has it only afterwards."""
    return float(engine.optimizer._global_grad_norm)


def set_grad_norm(optimizer: torch.optim.Optimizer, norm: float) -> None:
    """Without ZeRO: leave the norm where the engine copies it from, so that `get_global_grad_norm` returns it."""
    optimizer._global_grad_norm = norm


def set_checkpoint_engine(engine: deepspeed.DeepSpeedEngine, checkpoint_engine: TorchCheckpointEngine) -> None:
    """Replace what reads and writes checkpoint files; the config accepts DeepSpeed's own engines only."""
    engine.checkpoint_engine = checkpoint_engine


def wrapped_optimizer(engine: deepspeed.DeepSpeedEngine) -> torch.optim.Optimizer:
    """The torch optimizer below ZeRO's own."""
    return engine.basic_optimizer


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of the unsharded parameter; under ZeRO 3 `parameter.shape` is (0,) between forwards."""
    return parameter.ds_shape if is_zero_param(parameter) else parameter.shape


def local_shard(parameter: nn.Parameter) -> torch.Tensor:
    """This rank's flat shard of a parameter that ZeRO 3 shards, padded to the same length on every rank."""
    return parameter.ds_tensor


def convert_to_universal(checkpoint: Path, out: Path) -> None:
    """Rewrite a ZeRO checkpoint as DeepSpeed's universal checkpoint, which any number of ranks can load.

    The converter is a command line program; `Namespace` holds its parsed arguments.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    main(
        Namespace(
            input_folder=str(checkpoint),
            output_folder=str(out),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )
