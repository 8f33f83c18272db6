"""Number of slots per view, computed without weights for the planner, the processor and the model."""

from collections.abc import Sequence
from math import isqrt

from mmchat.errors import UserError
from mmchat.model.projectors.registry import projector_kind
from mmchat.vision import TowerSpec


def slots_per_tower(specs: Sequence[TowerSpec], projectors: Sequence[str]) -> list[int]:
    """Slots per view of each tower.

    Raises:
        UserError: A projector cannot take its tower's features.
    """
    return [projector_kind(name).slots(spec) for spec, name in zip(specs, projectors, strict=True)]


def slots_per_image(specs: Sequence[TowerSpec], projectors: Sequence[str], fusion: str) -> int:
    """Slots per view of all towers: common to them if fused on channels, their sum if fused on the sequence.

    Raises:
        UserError: Towers fused on channels give different numbers, a projector cannot take its tower's features, or
            the fit needs a square of features and they form none.
    """
    slots = slots_per_tower(specs, projectors)
    if any(spec.preprocessing.has_newline for spec in specs):
        _refuse_no_square(slots, fusion)
    if fusion == "sequence" or not slots:
        return sum(slots)
    if len(set(slots)) > 1:
        raise UserError(f"towers fused on channels must give equally many tokens, found {slots}; use fusion sequence")
    return slots[0]


def _refuse_no_square(slots: list[int], fusion: str) -> None:
    if fusion == "sequence" and len(slots) > 1:
        raise UserError("fit anyres puts the features of an image together, which needs towers fused on channels")
    if any(isqrt(count) ** 2 != count for count in slots):
        raise UserError(
            f"fit anyres needs features of a view that form a square and no class token, found {slots}; use another "
            "projector or fit"
        )
