"""Frozen weights, held as autocast would round them anyway: half the memory, and no cast in each forward.

Under `precision: bf16` a linear layer or convolution computes with its weight and bias rounded to bf16, whatever they
are kept in. So those that are frozen are kept rounded, which changes no bit of what a run computes. The originals come
back from the model directory before the end, since frozen weights are written as they were read.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

from mmchat.errors import UserError
from mmchat.training.config import RunConfig

ROUNDED_BY_AUTOCAST = (nn.Linear, nn.Conv2d, Conv1D)
"""Not norms, which compute in fp32, nor embeddings, whose output nothing rounds. Conv1D is GPT-2's linear layer."""


def keeps_rounded(config: RunConfig) -> bool:
    """Whether a run keeps them so. Not under ZeRO 3, where parameters of two types in parts were not tried."""
    return config.precision == "bf16" and config.distributed.zero_stage < 3


def round_frozen(model: nn.Module, directory: Path) -> None:
    """Keep in bf16 what is frozen, and only used where autocast rounds it; `directory` holds the originals."""
    stored = {name for name, _ in _stored(directory)}
    for name, parameter in rounded_anyway(model).items():
        # transformers may name or cut a weight otherwise than its file does; such a one could not be found again.
        if _name_in_file(name) in stored:
            parameter.data = parameter.data.to(torch.bfloat16)


def restore_frozen(model: nn.Module, directory: Path) -> None:
    """Undo `round_frozen`: read the originals, one at a time, in fp32.

    Raises:
        UserError: the directory no longer holds the weights that were rounded.
    """
    rounded = {
        _name_in_file(name): parameter
        for name, parameter in rounded_anyway(model).items()
        if parameter.dtype == torch.bfloat16
    }
    for name, file in _stored(directory):
        if name in rounded:
            original = file.get_tensor(name).to(rounded[name].device, torch.float32)
            if torch.equal(original.to(torch.bfloat16), rounded[name]):
                rounded.pop(name).data = original
    if rounded:
        raise UserError(
            f"{directory} no longer holds the frozen weights that this run started from: {min(rounded)} and "
            f"{len(rounded) - 1} more are missing or others; put them back, then go on with --resume"
        )


def rounded_anyway(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name, what belongs to nothing but layers that autocast rounds, and is not trained."""
    found, exact = {}, set()
    for path, module in model.named_modules():
        # No derived kinds: they may compute in another way.
        rounds = type(module) in ROUNDED_BY_AUTOCAST
        for name, parameter in module.named_parameters(recurse=False):
            if rounds and not parameter.requires_grad:
                found[f"{path}.{name}"] = parameter
            else:
                exact.add(id(parameter))  # a head may be tied to an embedding
    return {name: parameter for name, parameter in found.items() if id(parameter) not in exact}


def _name_in_file(name: str) -> str:
    """PEFT puts an adapted layer one level deeper."""
    return name.replace(".base_layer.", ".")


def _stored(directory: Path) -> Iterator[tuple[str, safe_open]]:
    """Names of a model directory's tensors and the open file that has them."""
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no mapping
                yield name, file
