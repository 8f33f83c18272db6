"""Vision towers: image tensor -> patch features.

`TowerSpec` and `preprocess` need no torch, and data workers import only these. Towers are imported on first access.
"""

from importlib import import_module

from mmchat.vision.layout import ImageLayout, SlotMap, join_slot_maps
from mmchat.vision.spec import Fit, Grid, TowerConfig, TowerSpec, refuse_several_views, refuse_unequal_views, with_fit
from mmchat.vision.transforms.anyres import LLAVA_ONEVISION, AnyRes
from mmchat.vision.transforms.preprocess import normalise, preprocess
from mmchat.vision.transforms.split import NANOVLM_MARKERS, Markers, Split
from mmchat.vision.transforms.tiling import Size, Tiling

__all__ = [
    "LLAVA_ONEVISION",
    "NANOVLM_MARKERS",
    "AnyRes",
    "Fit",
    "Grid",
    "ImageLayout",
    "Markers",
    "Size",
    "SlotMap",
    "Split",
    "Tiling",
    "TowerConfig",
    "TowerOutput",
    "TowerSpec",
    "VisionTower",
    "build_tower",
    "join_slot_maps",
    "load_tower",
    "normalise",
    "preprocess",
    "refuse_several_views",
    "refuse_unequal_views",
    "tower_spec",
    "with_fit",
]

_HOMES = {
    "TowerOutput": "mmchat.vision.tower",
    "VisionTower": "mmchat.vision.tower",
    "build_tower": "mmchat.vision.loading",
    "load_tower": "mmchat.vision.loading",
    "tower_spec": "mmchat.vision.loading",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
