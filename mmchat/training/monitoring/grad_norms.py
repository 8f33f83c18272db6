"""The gradient norm of each module of the trainability table, from what the optimizer is about to use."""

import math

import torch

from mmchat.training.distributed import collectives
from mmchat.training.optim.param_groups import ModuleGroup


class ModuleGradNorms:
    """Filled by the hook before an optimizer's step, read after it.

    sharded: each rank's optimizer sees its own part of every gradient (ZeRO 1 to 3), not all of it.
    """

    def __init__(self, groups: list[ModuleGroup], sharded: bool) -> None:
        self.sharded = sharded
        self._found: dict[str, list[torch.Tensor]] = {group.name: [] for group in groups if group.trained}

    def measure(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the norms of the gradients that lie in the optimizer's groups now."""
        for group in optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                self._found[group["name"]].append(torch.nn.utils.get_total_norm(gradients))

    def finish(self, total: float) -> dict[str, float]:
        """Norm by module, before clipping: they were measured after it, so they are scaled until together they give
        `total`. Empty where the optimizer was not asked to take the step. All ranks call this.
        """
        squares = [sum((float(norm) ** 2 for norm in norms), 0.0) for norms in self._found.values()]
        if self.sharded:
            squares = collectives.all_reduce(torch.tensor(squares, dtype=torch.float64)).tolist()
        for norms in self._found.values():
            norms.clear()
        if not sum(squares):
            return {}
        scale = total / math.sqrt(sum(squares))
        return {name: math.sqrt(square) * scale for name, square in zip(self._found, squares, strict=True)}
