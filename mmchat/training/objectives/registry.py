"""The class of each kind of objective, imported when it is used."""

from importlib import import_module

from mmchat.training.objectives.base import Objective

HOMES = {
    "assistant": ("mmchat.training.objectives.assistant", "AssistantObjective"),
    "contrastive": ("mmchat.training.objectives.contrastive", "ContrastiveObjective"),
    "simclr": ("mmchat.training.objectives.simclr", "SimCLRObjective"),
    "classify": ("mmchat.training.objectives.classify", "ClassifyObjective"),
}


def objective_class(kind: str) -> type[Objective]:
    """The objective of a run config's `objective.kind`."""
    module, name = HOMES[kind]
    return getattr(import_module(module), name)
