"""Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") for small matrices."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that `orthogonalize` iterates (Jordan)."""
ITERATIONS = 5
RMS = 0.2
"""Root mean square of AdamW's steps (Liu et al. 2025, arXiv:2502.16982)."""


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, as `torch.optim.Muon` with `match_rms_adamw`.

    Differs from it in speed: matrices of one shape are orthogonalized together, and in fp32 on a CPU without
    instructions for bf16.

    Args:
        params: Matrices, or groups of them.
        lr: Learning rate, that of AdamW.
        momentum: Decay of the averaged gradient.
        weight_decay: Decay per step, times `lr`.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient. `closure` is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape, parameter.device].append(parameter)
            for parameters in by_shape.values():
                directions = torch.stack([self._averaged(parameter, group["momentum"]) for parameter in parameters])
                size = group["lr"] * RMS * max(directions.shape[1:]) ** 0.5
                for parameter, direction in zip(parameters, orthogonalize(directions), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-size)

    def _averaged(self, parameter: torch.Tensor, momentum: float) -> torch.Tensor:
        """Nesterov's look-ahead on the averaged gradient."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Approximate U V^T of each matrix U S V^T by Newton-Schulz iterations; singular values come out near 1.

    Args:
        matrices: float[N, rows, columns].

    Returns:
        Of the same shape and dtype.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x.to(_fast_dtype(x.device.type))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


@functools.cache
def _fast_dtype(device: str) -> torch.dtype:
    """bf16, as Jordan iterates, but fp32 on a CPU that emulates bf16 and takes 15 times as long (docs/lab_log.md)."""
    emulated = device == "cpu" and not torch.cpu._is_avx512_bf16_supported()
    return torch.float32 if emulated else torch.bfloat16
