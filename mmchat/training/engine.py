"""The DeepSpeed engine: its config is derived from ours, so that nothing is stated twice."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.training.config import OptimizerConfig, RunConfig
from mmchat.training.deepspeed_internals import (
    disable_backward_reduction,
    grad_norm_of_step,
    reduce_gradients,
    set_grad_norm,
)
from mmchat.training.distributed import collectives
from mmchat.training.monitoring.grad_norms import ModuleGradNorms
from mmchat.training.monitoring.nan_guard import NanGuard
from mmchat.training.optim.frozen_weights import keeps_rounded, round_frozen
from mmchat.training.optim.optimizer import build_optimizer
from mmchat.training.optim.param_groups import ModuleGroup

BUCKET = 25_000_000
"""Elements of gradients that ranks exchange at a time: 100 MB."""


def accumulation(config: RunConfig, ranks: int) -> tuple[int, int]:
    """(micro-batch size, gradient accumulation steps) of each rank.

    Raises:
        UserError: the batch cannot be cut into equal micro-batches.
    """
    micro = config.micro_batch_size or config.batch_size // ranks
    if not micro or config.batch_size % (micro * ranks):
        raise UserError(
            f"batch_size {config.batch_size} is not a multiple of micro_batch_size {micro} x {ranks} ranks; "
            "every rank must get equally many micro-batches"
        )
    return micro, config.batch_size // (micro * ranks)


def deepspeed_config(config: RunConfig, ranks: int, load_universal: bool = False) -> dict[str, Any]:
    """What `deepspeed.initialize` gets; the user's own JSON, if named, is laid over it.

    load_universal: the checkpoint to be loaded was converted for another number of ranks (`checkpoints.universal`).

    Raises:
        UserError: the user's JSON restates what this run's YAML decides.
    """
    # How many forwards a packed step takes varies. `train_step` tells DeepSpeed which is the last; what it is told here
    # only has to agree with itself then.
    micro, steps = (1, 1) if config.objective.packing else accumulation(config, ranks)
    derived = {
        "train_batch_size": micro * steps * ranks,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        # ZeRO clips and keeps the norm; without ZeRO DeepSpeed clips but forgets it, so `_before_step` does both.
        "gradient_clipping": config.optimizer.clip if config.distributed.zero_stage else 0.0,
        "zero_optimization": {"stage": config.distributed.zero_stage, **_offload(config.distributed.offload)},
        # Weights stay fp32 and autocast rounds inside the forward; gradients must then travel as fp32, too.
        "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16"},
        "communication_data_type": "fp32",
        # torch's AdamW runs everywhere; DeepSpeed's own CPU Adam would need a compiler.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": load_universal},
    }
    if config.distributed.deepspeed is None:
        return derived
    own = read_json(config.distributed.deepspeed)
    stated = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}
    stated |= {"gradient_clipping", "optimizer", "scheduler", "bf16", "fp16", "torch_autocast"}
    if clash := sorted(stated & set(own)):
        raise UserError(
            f"{config.distributed.deepspeed}: {', '.join(clash)} are decided by the run config; remove them here"
        )
    stage = own.get("zero_optimization", {}).get("stage", config.distributed.zero_stage)
    if stage != config.distributed.zero_stage:
        raise UserError(
            f"{config.distributed.deepspeed}: zero_optimization.stage is {stage}, but the run config's "
            f"distributed.zero_stage is {config.distributed.zero_stage}; write zero_stage: {stage} there"
        )
    return _merge(derived, own)


def _offload(what: str) -> dict[str, Any]:
    """Pinned memory is what a GPU copies from without waiting; without a GPU there is none."""
    where = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    parts = {"none": [], "optimizer": ["offload_optimizer"], "all": ["offload_optimizer", "offload_param"]}[what]
    return dict.fromkeys(parts, where)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def lr_factor(step: int, total: int, config: OptimizerConfig) -> float:
    """Share of the peak learning rate used for step `step` (from 0) of `total`.

    Linear warmup to the peak, then cosine (Loshchilov & Hutter, arXiv:1608.03983) or linear decay to
    `min_lr_ratio` at the end, or constant.
    """
    warmup = math.ceil(config.warmup * total) if config.warmup < 1 else int(config.warmup)
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.schedule]
    floor = 1.0 if config.schedule == "constant" else config.min_lr_ratio
    return floor + (1 - floor) * falling


def build_engine(
    model: nn.Module,
    groups: list[ModuleGroup],
    config: RunConfig,
    total_steps: int,
    ranks: int,
    guard: NanGuard,
    norms: ModuleGradNorms,
    load_universal: bool = False,
) -> deepspeed.DeepSpeedEngine:
    """Wrap a model whose `requires_grad` is already set. Before each step `guard` and `norms` see the gradients."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if keeps_rounded(config):
        round_frozen(model, Path(config.model))
    own = config.optimizer
    optimizer = build_optimizer(model, groups, own)
    scheduler = LambdaLR(optimizer, lambda step: lr_factor(step, total_steps, own))
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=scheduler,
        config=deepspeed_config(config, ranks, load_universal),
        dist_init_required=False,
    )
    optimizer.register_step_pre_hook(_before_step(engine, own.clip or math.inf, guard, norms))
    if not engine.zero_optimization():
        disable_backward_reduction(engine)  # `mean_over_ranks` does it
    return engine


def mean_over_ranks(engine: deepspeed.DeepSpeedEngine) -> None:
    """After the last backward of a step: gradients become their mean over ranks, zero where this step gave none.

    Only at ZeRO 0, where DeepSpeed would copy up to 2 GB of them at once to and fro, on a single rank, too. Under ZeRO
    it has done its part by now.
    """
    if engine.zero_optimization():
        return
    if collectives.ranks() > 1:
        reduce_gradients(engine, BUCKET)
        return
    for group in engine.optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def _before_step(
    engine: deepspeed.DeepSpeedEngine, max_norm: float, guard: NanGuard, norms: ModuleGradNorms
) -> Callable[..., None]:
    """Give the gradients up if the guard objects: an optimizer passes over parameters without one, so that neither
    they nor their moments change, while DeepSpeed and the schedule count the step.

    Under ZeRO the norm is known and the gradient clipped by now. Without ZeRO this clips the averaged gradients and
    leaves their norm where `engine.get_global_grad_norm` looks for it. ZeRO 3 takes its steps in several pieces, and
    the hook is called for each.
    """

    def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if not engine.zero_optimization():
            set_grad_norm(optimizer, float(torch.nn.utils.clip_grad_norm_(parameters, max_norm)))
        norms.measure(optimizer)
        if not guard.passes(grad_norm_of_step(engine)):
            for parameter in parameters:
                parameter.grad = None

    return hook
