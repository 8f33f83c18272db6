"""How many slots an image takes, for the planner, the processor and the model."""

from collections.abc import Sequence

from mmchat.errors import UserError
from mmchat.model.projectors.registry import projector_kind
from mmchat.vision import TowerSpec


def slots_per_tower(specs: Sequence[TowerSpec], projectors: Sequence[str]) -> list[int]:
    """Slots that each tower's features take.

    Raises:
        UserError: a projector cannot take the tower's features.
    """
    return [projector_kind(name).slots(spec) for spec, name in zip(specs, projectors, strict=True)]


def slots_per_image(specs: Sequence[TowerSpec], projectors: Sequence[str], fusion: str) -> int:
    """Slots of one image: the towers share them when fused on channels, and follow each other on the sequence.

    Raises:
        UserError: towers fused on channels give different numbers.
    """
    slots = slots_per_tower(specs, projectors)
    if fusion == "sequence" or not slots:
        return sum(slots)
    if len(set(slots)) > 1:
        raise UserError(f"towers fused on channels must give equally many tokens, found {slots}; use sequence")
    return slots[0]
