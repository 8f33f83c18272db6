"""The run's own model without a weight: fake tensors, which have a shape, a type and a device, and no memory.

torch makes them for its compiler. Operations on them compute shapes by the same code that a run goes through, autocast
and the choice among attention kernels included, so a model of 7B opens in a second and runs in a few. What they cannot
do is depend on values. Token ids, labels and lengths therefore stay real: everything on the CPU that no fake tensor has
touched is computed (`RealIndices`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmchat.model.short_attention import fused_kernels_only
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from mmchat.training.objectives.base import Objective
from mmchat.training.optim.frozen_weights import keeps_rounded, rounded_anyway
from mmchat.training.optim.param_groups import ModuleGroup, apply_rules


@dataclass
class Shapes:
    """What `build_model` gives, with fake weights. They compute within `running`."""

    objective: Objective
    groups: list[ModuleGroup]
    mode: FakeTensorMode

    @contextmanager
    def running(self) -> Iterator[None]:
        with fused_kernels_only(), RealIndices(self.mode):
            yield


def open_shapes(config: RunConfig) -> Shapes:
    """Raises UserError as `build_model`, but for weights that are missing or damaged."""
    with torch.device("meta"):  # PEFT and others move parameters about, which only real and meta ones allow
        objective = build_model(config, weights=False).objective
    if keeps_rounded(config):
        for parameter in rounded_anyway(objective.model).values():
            parameter.data = parameter.data.to(torch.bfloat16)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _make_fake(objective.model, mode)
    return Shapes(objective, apply_rules(objective.model, config.trainable), mode)


def _make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Parameters and buffers of the meta device become fake ones on the CPU; tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty_like(tensor, device="cpu")
            made[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
        return made[id(tensor)]

    for module in model.modules():
        for tensors in (module.named_parameters, module.named_buffers):
            for name, tensor in list(tensors(recurse=False, remove_duplicate=False)):
                setattr(module, name, fake(tensor))


class RealIndices(TorchDispatchMode):
    """Fake where a fake tensor takes part, real elsewhere. Masks that choose become the places that they choose."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            return function(*args, **kwargs)
        if function is torch.ops.aten.index.Tensor:
            chosen, indices = args
            args = chosen, [place for index in indices for place in _places(index)]
        with self._mode:
            return function(*args, **kwargs)


def _places(index: torch.Tensor | None) -> list[torch.Tensor | None]:
    if index is None or index.dtype != torch.bool:
        return [index]
    return list(index.nonzero().unbind(1))
