"""The learning rate over a run: linear warmup, then cosine or linear decay, or constant."""

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from mmchat.training.config import OptimizerConfig


def build_lr_schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig, total_steps: int) -> LambdaLR:
    """A schedule that scales the rate of every parameter group."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, total_steps, config))


def lr_factor(step: int, total: int, config: OptimizerConfig) -> float:
    """Share of the peak learning rate at a step.

    Linear warmup to the peak, then cosine (Loshchilov & Hutter, arXiv:1608.03983) or linear decay to `min_lr_ratio` at
    the last step, or constant.

    Args:
        step: from 0.
        total: steps of the run.
    """
    warmup = math.ceil(config.warmup * total) if config.warmup < 1 else int(config.warmup)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    falling = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    floor = 1.0 if config.schedule == "constant" else config.min_lr_ratio
    return floor + (1 - floor) * falling[config.schedule]
