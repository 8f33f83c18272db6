"""Finds trained tensors that receive no gradient."""

from collections.abc import Callable

import torch

from mmchat.training.distributed.collectives import all_reduce
from mmchat.training.optim.param_groups import ModuleGroup


class GradientWatch:
    """Notes which trained tensors received a finite, non-zero gradient, at any ZeRO stage.

    Hooks see a gradient when autograd makes it, before DeepSpeed partitions and frees it.
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
        """Stop watching; names of the tensors that got none on any rank."""
        for hook in self._hooks:
            hook.remove()
        good = torch.tensor([name in self._good for name in self._parameters], dtype=torch.float32)
        good = all_reduce(good, "max")
        return [name for name, seen in zip(self._parameters, good.tolist(), strict=True) if not seen]
