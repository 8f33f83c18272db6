"""DeepSpeed's config, derived from the run config so that nothing is stated twice."""

from pathlib import Path
from typing import Any

import torch

from mmchat.data.order import split_batch
from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.training.config import DistributedConfig, RunConfig

DECIDED_BY_RUN_CONFIG = {
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("optimizer", "scheduler", "bf16", "fp16", "torch_autocast"),
}
"""Keys that a user's own DeepSpeed JSON may not have."""


def deepspeed_config(config: RunConfig, ranks: int, load_universal: bool = False) -> dict[str, Any]:
    """The config for `deepspeed.initialize`; the user's own JSON, if there is one, is merged over it.

    Args:
        load_universal: the checkpoint to load was resharded for another number of ranks (`checkpoints.reshard`).

    Raises:
        UserError: the user's JSON repeats or contradicts the run config, or the batch cannot be split.
    """
    # The number of forwards in a packed step varies. `train_step` marks the last one for DeepSpeed; the sizes given
    # here must only agree with each other.
    split = (1, 1) if config.objective.packing else split_batch(config.batch_size, config.micro_batch_size, ranks)
    micro_batch_size, accumulation_steps = split
    distributed = config.distributed
    derived = {
        "train_batch_size": micro_batch_size * accumulation_steps * ranks,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        # ZeRO clips and keeps the norm. Without ZeRO DeepSpeed does not keep it, so the engine's hook does both.
        "gradient_clipping": config.optimizer.clip if distributed.zero_stage else 0.0,
        "zero_optimization": {"stage": distributed.zero_stage, **_offload(distributed.offload)},
        # Weights stay fp32 and autocast rounds inside the forward; gradients must then be reduced as fp32, too.
        "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16"},
        "communication_data_type": "fp32",
        # torch's AdamW runs everywhere; DeepSpeed's own CPU Adam would need a compiler.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": load_universal},
    }
    return derived if distributed.deepspeed is None else _merge(derived, _users_own(distributed.deepspeed, distributed))


def _users_own(path: Path, distributed: DistributedConfig) -> dict[str, Any]:
    values = read_json(path)
    if clash := sorted(DECIDED_BY_RUN_CONFIG & set(values)):
        raise UserError(f"{path}: {', '.join(clash)} are decided by the run config; remove them here")
    stage = values.get("zero_optimization", {}).get("stage", distributed.zero_stage)
    if stage != distributed.zero_stage:
        raise UserError(
            f"{path}: zero_optimization.stage is {stage}, but the run config's distributed.zero_stage is "
            f"{distributed.zero_stage}; write zero_stage: {stage} there"
        )
    return values


def _offload(what: str) -> dict[str, Any]:
    """A GPU copies from pinned memory without waiting; without a GPU there is none."""
    to_cpu = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    keys = {"none": [], "optimizer": ["offload_optimizer"], "all": ["offload_optimizer", "offload_param"]}[what]
    return dict.fromkeys(keys, to_cpu)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
