"""Gradient norm per module of the trainability table, from the gradients that the optimizer uses."""

import math

import torch

from mmchat.training.distributed import collectives
from mmchat.training.optim.param_groups import ModuleGroup


class ModuleGradNorms:
    """Measured by a hook before the optimizer's step, read after it.

    Args:
        sharded: the optimizer of a rank has only its shard of the gradients (ZeRO 1 to 3).
    """

    def __init__(self, groups: list[ModuleGroup], sharded: bool) -> None:
        self.sharded = sharded
        self._norms: dict[str, list[torch.Tensor]] = {group.name: [] for group in groups if group.trained}

    def measure(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure the gradients that are in the optimizer's groups now."""
        for group in optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                self._norms[group["name"]].append(torch.nn.utils.get_total_norm(gradients))

    def finish(self, total: float) -> dict[str, float]:
        """Norms by module, before clipping. All ranks call this.

        They were measured after clipping, so they are scaled until together they give `total`.

        Args:
            total: the norm of the whole gradient before clipping.

        Returns:
            An empty dict if the optimizer did not take the step.
        """
        squares = [sum((float(norm) ** 2 for norm in norms), 0.0) for norms in self._norms.values()]
        if self.sharded:
            squares = collectives.all_reduce(torch.tensor(squares, dtype=torch.float64)).tolist()
        for norms in self._norms.values():
            norms.clear()
        if not sum(squares):
            return {}
        scale = total / math.sqrt(sum(squares))
        return {name: math.sqrt(square) * scale for name, square in zip(self._norms, squares, strict=True)}
