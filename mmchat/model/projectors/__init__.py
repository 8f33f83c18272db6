"""From a tower's patch features to the slots' embeddings, chosen by exact name. Slots are counted without weights.

A new projector is a small class (`projector.ProjectorKind`) in a file here, and a line in `registry`.
"""

from mmchat.model.projectors.registry import PROJECTORS, projector_kind
from mmchat.model.projectors.slots import slots_per_image, slots_per_tower

__all__ = ["PROJECTORS", "projector_kind", "slots_per_image", "slots_per_tower"]
