"""Finds trained tensors that receive no gradient."""

from collections.abc import Callable

import torch
from rich.console import Console

from mmchat.training.distributed.collectives import all_reduce
from mmchat.training.optim.param_groups import ModuleGroup

WATCHED_STEPS = 3
"""Steps of a new run after which trained tensors without a gradient are reported."""


class GradientWatch:
    """Notes which trained tensors received a finite, non-zero gradient, at any ZeRO stage.

    Hooks see a gradient when autograd computes it, before DeepSpeed shards and frees it.
    """

    def __init__(self, groups: list[ModuleGroup]) -> None:
        self._parameters = {name: p for group in groups for name, p in group.trained.items()}
        self._good: set[str] = set()
        self._hooks = [p.register_hook(self._note(name)) for name, p in self._parameters.items()]

    def _note(self, name: str) -> Callable[[torch.Tensor], None]:
        def hook(gradient: torch.Tensor) -> None:
            if bool(torch.isfinite(gradient).all()) and bool(gradient.any()):
                self._good.add(name)

        return hook

    def finish(self) -> list[str]:
        """Stop watching; returns the names of the tensors that received none on any rank."""
        for hook in self._hooks:
            hook.remove()
        good = torch.tensor([name in self._good for name in self._parameters], dtype=torch.float32)
        good = all_reduce(good, "max")
        return [name for name, received in zip(self._parameters, good.tolist(), strict=True) if not received]


def report_missing_gradients(names: list[str], console: Console) -> None:
    """Print a warning with the first of the names, if there are any."""
    if names:
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        console.print(f"no gradient in the first {WATCHED_STEPS} steps for {shown}", style="yellow")
