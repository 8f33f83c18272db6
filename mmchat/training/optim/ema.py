"""Exponential moving average (EMA) of the trained weights, sharded over ranks at every ZeRO stage."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mmchat.training.checkpoints.storage import ChecksummedFiles, read_manifest
from mmchat.training.deepspeed_internals import full_shape, is_zero_param, local_shard
from mmchat.training.distributed import collectives, process_group
from mmchat.training.optim.param_groups import ModuleGroup

FILE = "average-rank-{}.pt"


class WeightAverage:
    """average = decay * average + (1 - decay) * weights, after every step taken.

    The decay is at most (1 + step) / (10 + step), so that the initial weights are soon forgotten (TensorFlow's
    `tf.train.ExponentialMovingAverage`).
    """

    def __init__(self, groups: list[ModuleGroup], decay: float) -> None:
        """Create it after the engine, when the weights are on their device and sharded."""
        self.decay = decay
        self._weights = {name: parameter for group in groups for name, parameter in group.trained.items()}
        self._shards = {name: _shard(parameter).clone() for name, parameter in self._weights.items()}

    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        shards = [_shard(parameter) for parameter in self._weights.values()]
        get_ema_multi_avg_fn(decay)(list(self._shards.values()), shards, step)

    def save(self, files: ChecksummedFiles, checkpoint: Path) -> None:
        files.save(self._shards, str(checkpoint / FILE.format(process_group.rank())))

    def restore(self, checkpoint: Path) -> None:
        """Load this rank's shard from what all ranks, perhaps more or fewer, have saved."""
        paths = [checkpoint / FILE.format(rank) for rank in range(read_manifest(checkpoint).ranks)]
        saved = [torch.load(path, map_location="cpu", weights_only=True, mmap=True) for path in paths]
        for name, shard in self._shards.items():
            shard.copy_(_cut(torch.cat([of_rank[name] for of_rank in saved])))

    def whole(self) -> dict[str, torch.Tensor] | None:
        """All averaged tensors by name, on rank 0's CPU; None on other ranks. All ranks call this."""
        state = {}
        for name, shard in self._shards.items():
            shape = full_shape(self._weights[name])
            padded = F.pad(shard, (0, _size(shape.numel()) - shard.numel()))
            flat = collectives.all_gather_concat(padded)
            if process_group.rank() == 0:
                state[name] = flat[: shape.numel()].view(shape).cpu()
        return state if process_group.rank() == 0 else None


def _size(numel: int) -> int:
    """Elements of a shard. ZeRO 3 shards in the same way, so its shards can be used as they are."""
    return -(-numel // process_group.world_size())


def _cut(flat: torch.Tensor) -> torch.Tensor:
    size = _size(flat.numel())
    return flat[process_group.rank() * size : (process_group.rank() + 1) * size]


def _shard(parameter: nn.Parameter) -> torch.Tensor:
    """This rank's shard of the current weights, float32[n]; that of the last ranks may be shorter or empty."""
    if not is_zero_param(parameter):
        return _cut(parameter.detach().flatten())
    numel = full_shape(parameter).numel()
    left = numel - process_group.rank() * _size(numel)
    return local_shard(parameter).detach()[: max(0, left)]
