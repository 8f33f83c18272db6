"""Projectors map a tower's patch features to embeddings of image slots. They are chosen by exact name.

A new projector is a small class (`projector.ProjectorKind`) in a file here, and a line in `registry`.
"""

from mmchat.model.projectors.projectors import Projectors
from mmchat.model.projectors.registry import PROJECTORS, projector_kind
from mmchat.model.projectors.slots import slots_per_image, slots_per_tower

__all__ = ["PROJECTORS", "Projectors", "projector_kind", "slots_per_image", "slots_per_tower"]
