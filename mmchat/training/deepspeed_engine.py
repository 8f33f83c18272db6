"""The DeepSpeed engine around a model, its optimizer and its schedule."""

import logging
import math
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import nn

from mmchat.hub import resolve
from mmchat.training.config import RunConfig
from mmchat.training.deepspeed_internals import (
    disable_backward_reduction,
    grad_norm_of_step,
    reduce_gradients,
    set_grad_norm,
)
from mmchat.training.distributed import process_group
from mmchat.training.distributed.deepspeed_config import deepspeed_config
from mmchat.training.monitoring.grad_norms import ModuleGradNorms
from mmchat.training.monitoring.nan_guard import NanGuard
from mmchat.training.optim.frozen_weights import keep_trained_in_bf16, keeps_rounded, round_frozen
from mmchat.training.optim.lr_schedule import build_lr_schedule
from mmchat.training.optim.optimizer import build_optimizer
from mmchat.training.optim.param_groups import ModuleGroup

BUCKET = 25_000_000
"""Gradient elements that ranks reduce at a time: 100 MB."""


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
    """Wrap a model whose `requires_grad` is already set.

    Args:
        groups: the trainability table.
        guard, norms: see the gradients before each optimizer step; the guard may refuse the step.
        load_universal: see `deepspeed_config`.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if keeps_rounded(config.precision, config.distributed.zero_stage):
        round_frozen(model, resolve(config.model))
    if config.trained_weights == "bf16":
        keep_trained_in_bf16(model)
    optimizer = build_optimizer(model, groups, config.optimizer, config.seed)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=build_lr_schedule(optimizer, config.optimizer, total_steps),
        config=deepspeed_config(config, ranks, load_universal),
        dist_init_required=False,
    )
    optimizer.register_step_pre_hook(_before_step(engine, config.optimizer.clip or math.inf, guard, norms))
    if not engine.zero_optimization():
        disable_backward_reduction(engine)  # `average_gradients` does it
    return engine


def average_gradients(engine: deepspeed.DeepSpeedEngine) -> None:
    """Average gradients over ranks after the last backward of a step; gradients that this step did not give are zero.

    Only at ZeRO 0, where DeepSpeed itself would copy up to 2 GB of them at once, even on a single rank. Under ZeRO
    gradients are already reduced.
    """
    if engine.zero_optimization():
        return
    if process_group.world_size() > 1:
        reduce_gradients(engine, BUCKET)
        return
    for group in engine.optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def _before_step(
    engine: deepspeed.DeepSpeedEngine, max_norm: float, guard: NanGuard, norms: ModuleGradNorms
) -> Callable[..., None]:
    """A hook that drops all gradients if the guard refuses the step.

    An optimizer skips parameters without a gradient, so neither weights nor moments change, while DeepSpeed and the
    schedule still count the step. Under ZeRO the norm is known and the gradient clipped before the hook. Without ZeRO
    the hook clips, and stores the norm where `engine.get_global_grad_norm` looks for it. ZeRO 3 steps its parameters in
    several pieces and calls the hook for each.
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
