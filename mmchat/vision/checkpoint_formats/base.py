"""What every layout answers."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch

from mmchat.errors import UserError
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import TowerConfig


class TowerCheckpoint(NamedTuple):
    """A tower as its layout has it.

    state: keys as in `VisionTower.state_dict()`; None: weights were not wanted. image_size: side of the images that
    its image processor makes, where the source says that apart from the config.
    """

    config: TowerConfig
    state: dict[str, torch.Tensor] | None
    image_size: int | None = None


class CheckpointFormat(Protocol):
    name: str
    """How messages call it."""

    def recognises(self, source: WeightFiles) -> bool:
        """By what it holds, never by what it is called."""

    def open(self, source: WeightFiles, weights: bool) -> TowerCheckpoint:
        """Raises UserError where it is of this layout and yet cannot be used. Strictness is the caller's: what `state`
        has too many or too few is found when it is loaded, so a layout leaves out of it other parts' keys only."""


def with_backbone_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"backbone.{key}": tensor for key, tensor in state.items()}


def part_of(source: WeightFiles, prefix: str, others: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """A tower's tensors out of a whole model, by what follows `prefix`.

    Args:
        others: beginnings of the names of its other parts.

    Raises:
        UserError: a tensor belongs to no part; lists them.
    """
    refuse_strangers(source, (prefix, *others))
    return source.tensors(prefix)


def refuse_strangers(source: WeightFiles, known: tuple[str, ...]) -> None:
    """Raises UserError that lists the tensors whose names begin with nothing that is known."""
    strangers = {key: shape for key, shape in source.shapes.items() if not key.startswith(known)}
    refuse_misfits({}, strangers, str(source.path))


def listed(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys))


def refuse_misfits(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], where: str) -> None:
    """Both are name -> shape. Raises UserError that lists what is missing, left over or of another shape."""
    both = wanted.keys() & found.keys()
    problems = {
        "missing": listed(wanted.keys() - found.keys()),
        "left over": listed(found.keys() - wanted.keys()),
        "of another shape": listed(
            f"{key} {tuple(found[key])} for {tuple(wanted[key])}" for key in both if found[key] != wanted[key]
        ),
    }
    if any(problems.values()):
        told = "; ".join(f"{name}: {keys}" for name, keys in problems.items() if keys)
        raise UserError(f"the weights in {where} do not fit its config: {told}")
