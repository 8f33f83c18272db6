"""Frozen weights in bf16: half the memory, and no cast in each forward.

Under `precision: bf16` autocast rounds the weight and bias of linear layers and convolutions to bf16 in every forward.
Frozen ones are therefore stored rounded, which changes no bit of the results. Before the model is written the originals
are read again from the model directory, so that frozen weights are saved as they were.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

from mmchat.errors import UserError
from mmchat.model.lora_adapter import lora_layer_types

ROUNDED_BY_AUTOCAST = (nn.Linear, nn.Conv2d, Conv1D)
"""Not norms, which compute in fp32, nor embeddings, whose output is not rounded. Conv1D is GPT-2's linear layer.

Nor layers with DoRA, which computes norms of the exact weight.
"""


def keeps_rounded(precision: str, zero_stage: int) -> bool:
    """Whether a run does this. Not under ZeRO 3, where sharding parameters of two dtypes is untested."""
    return precision == "bf16" and zero_stage < 3


def round_frozen(model: nn.Module, directory: Path) -> None:
    """Convert to bf16 the frozen weights that autocast rounds anyway.

    Args:
        directory: holds the originals.
    """
    for parameter in restorable(model, directory).values():
        parameter.data = parameter.data.to(torch.bfloat16)


def restorable(model: nn.Module, directory: Path) -> dict[str, nn.Parameter]:
    """Those of `rounded_anyway` whose originals `directory` holds under the same names.

    transformers may rename or split a weight of the file, and a tower may come from a foreign source. Such originals
    could not be found again.
    """
    stored = {name for name, _ in _stored(directory)}
    return {name: one for name, one in rounded_anyway(model).items() if _name_in_file(name) in stored}


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
            f"{len(rounded) - 1} more are missing or differ; restore them, then resume with --resume"
        )


def keep_trained_in_bf16(model: nn.Module) -> None:
    """Convert to bf16 the trained weights that autocast rounds in each forward (`trained_weights: bf16`)."""
    for parameter in rounded_anyway(model, trained=True).values():
        parameter.data = parameter.data.to(torch.bfloat16)


def rounded_anyway(model: nn.Module, trained: bool = False) -> dict[str, nn.Parameter]:
    """Frozen (or trained) parameters, by name, that are used only by layers whose weights autocast rounds."""
    found, exact = {}, set()
    adapted = [m for m in model.modules() if isinstance(m, lora_layer_types()) and m.lora_magnitude_vector]
    with_norms = {id(layer.get_base_layer()) for layer in adapted}
    for path, module in model.named_modules():
        # Exactly these classes: a subclass may compute differently.
        rounds = type(module) in ROUNDED_BY_AUTOCAST and id(module) not in with_norms
        for name, parameter in module.named_parameters(recurse=False):
            if rounds and parameter.requires_grad == trained:
                found[f"{path}.{name}"] = parameter
            else:
                exact.add(id(parameter))  # a head may be tied to an embedding
    return {name: parameter for name, parameter in found.items() if id(parameter) not in exact}


def _name_in_file(name: str) -> str:
    """PEFT moves an adapted layer one level down."""
    return name.replace(".base_layer.", ".")


def _stored(directory: Path) -> Iterator[tuple[str, safe_open]]:
    """Name of each tensor in a model directory, and the open file that holds it."""
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no mapping
                yield name, file
