"""The interface of checkpoint formats, and what several of them share."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from mmchat.errors import UserError
from mmchat.pretrained import Shapes, refuse_misfit
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import TowerConfig


class TowerCheckpoint(NamedTuple):
    """A tower read from a checkpoint.

    Attributes:
        config: Its config.
        state: Keys as in `VisionTower.state_dict()`; None if weights were not requested.
        image_size: Side in pixels of the images that its image processor makes; None if no file states it.
    """

    config: TowerConfig
    state: dict[str, torch.Tensor] | None
    image_size: int | None = None


class CheckpointFormat(Protocol):
    """One published format of vision towers."""

    name: str
    """For messages."""

    def recognises(self, files: WeightFiles) -> bool:
        """Whether `files` have this format, judged by their contents, never by their names."""

    def open(self, files: WeightFiles, weights: bool) -> TowerCheckpoint:
        """Read a tower of this format.

        The caller finds missing and unexpected keys when it fills the tower, so `state` leaves out only keys that
        belong to other parts of the model.

        Args:
            files: Files that `recognises` accepted.
            weights: Whether to read weights.

        Raises:
            UserError: The files have this format, but cannot be used.
        """


def with_backbone_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys of a backbone -> keys of a `VisionTower`."""
    return {f"backbone.{key}": tensor for key, tensor in state.items()}


def tensors_below(files: WeightFiles, prefix: str, other_parts: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """A tower's tensors out of a whole model, without `prefix`.

    Args:
        files: The whole model.
        prefix: Prefix of the tower's keys.
        other_parts: Prefixes of the other parts' keys.

    Raises:
        UserError: A key belongs to no part; lists all such keys.
    """
    refuse_unknown_keys(files, (prefix, *other_parts))
    return files.tensors(prefix)


def refuse_unknown_keys(files: WeightFiles, known: tuple[str, ...]) -> None:
    """Raise UserError that lists the keys that start with none of the known prefixes."""
    refuse_misfit(files.path, left_over=[key for key in files.shapes if not key.startswith(known)])


def require_keys(shapes: Shapes, keys: Iterable[str], where: Path) -> None:
    """Raise UserError that lists which of the tensors that give a model's size are missing."""
    if missing := [key for key in keys if key not in shapes]:
        raise UserError(
            f"the weights in {where} do not give the size of the model: missing: {', '.join(sorted(missing))}"
        )


def count_blocks(shapes: Iterable[str], prefix: str) -> int:
    """Number of blocks: one more than the largest number that follows `prefix`."""
    numbers = (re.match(rf"{re.escape(prefix)}(\d+)\.", key) for key in shapes)
    return 1 + max((int(found[1]) for found in numbers if found), default=-1)


def rename_key(key: str, prefixes: Mapping[str, str], infixes: Mapping[str, str]) -> str:
    """Replace the first prefix that matches, then every infix; both map old -> new."""
    for old, new in prefixes.items():
        if key.startswith(old):
            key = new + key.removeprefix(old)
            break
    for old, new in infixes.items():
        key = key.replace(old, new)
    return key


def split_qkv(prefix: str, kind: str, fused: torch.Tensor) -> dict[str, torch.Tensor]:
    """Split a fused tensor into query, key and value under transformers' names.

    Args:
        prefix: Key of the attention module, with its dot.
        kind: "weight" or "bias".
        fused: [3 * width, ...].
    """
    thirds = zip("qkv", fused.tensor_split(3), strict=True)
    return {f"{prefix}{name}_proj.{kind}": third.clone() for name, third in thirds}
