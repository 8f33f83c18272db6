"""The run's own model without weights: fake tensors, which have a shape, a type and a device, but no memory.

torch has them for its compiler. Operations on them compute shapes with the code of a real run, including autocast and
the choice of attention kernels, so a model of 7B opens in a second and runs in a few. They have no values. Token ids,
labels and lengths therefore stay real: operations without a fake argument are computed (`RealIndices`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmchat.hub import resolve
from mmchat.model.short_attention import fused_kernels_only
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from mmchat.training.objectives.base import Objective
from mmchat.training.optim.frozen_weights import (
    keep_trained_in_bf16,
    keeps_rounded,
    restorable,
    rounded_anyway,
)
from mmchat.training.optim.param_groups import ModuleGroup, apply_rules


@dataclass
class FakeModel:
    """The result of `build_model` with fake weights; run it inside `running`."""

    objective: Objective
    groups: list[ModuleGroup]
    mode: FakeTensorMode

    @contextmanager
    def running(self) -> Iterator[None]:
        with fused_kernels_only(), RealIndices(self.mode):
            yield


def open_fake_model(config: RunConfig) -> FakeModel:
    """As `build_model`, but no weights are read.

    Raises:
        UserError: as `build_model`, except for missing or damaged weights.
    """
    with torch.device("meta"):  # PEFT and others move parameters, which fake tensors do not allow
        objective = build_model(config, weights=False).objective
    if keeps_rounded(config.precision, config.distributed.zero_stage):
        for parameter in _kept_rounded(objective.model, resolve(config.model, weights=False)).values():
            parameter.data = parameter.data.to(torch.bfloat16)
    if config.trained_weights == "bf16":
        keep_trained_in_bf16(objective.model)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for model in (objective.model, objective.teacher):
        if model is not None:
            _make_fake(model, mode)
    return FakeModel(objective, apply_rules(objective.model, config.trainable), mode)


def _kept_rounded(model: nn.Module, source: Path) -> dict[str, nn.Parameter]:
    """Frozen weights that the run keeps in bf16. A model directory without weights stands for one that has them."""
    without_weights = source.is_dir() and not any(source.glob("*.safetensors"))
    return rounded_anyway(model) if without_weights else restorable(model, source)


def _make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Turn parameters and buffers of the meta device into fake ones on the CPU; tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty_like(tensor, device="cpu")
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        return made[id(tensor)]

    for module in model.modules():
        for tensors in (module.named_parameters, module.named_buffers):
            for name, tensor in list(tensors(recurse=False, remove_duplicate=False)):
                setattr(module, name, fake(tensor))


class RealIndices(TorchDispatchMode):
    """Fake if an argument is a fake tensor, else real. Boolean masks become the indices that they select."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            return function(*args, **kwargs)
        if function is torch.ops.aten.index.Tensor:
            tensor, indices = args
            args = tensor, [integer for index in indices for integer in _as_integers(index)]
        with self._mode:
            return function(*args, **kwargs)


def _as_integers(index: torch.Tensor | None) -> list[torch.Tensor | None]:
    if index is None or index.dtype != torch.bool:
        return [index]
    return list(index.nonzero().unbind(1))
