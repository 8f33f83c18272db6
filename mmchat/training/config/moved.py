"""Where keys of earlier layouts of the run config are now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmchat.settings import Elsewhere, load_settings, read_yaml, validate
from mmchat.settings_schema import describe
from mmchat.training.config.foreign_keys import FOREIGN_KEYS
from mmchat.training.config.run import RunConfig

MOVED = {
    "fit": "objective.fit",
    "packing": "objective.packing",
    "feature_cache": "objective.feature_cache",
    "augment_towers": "objective.augment_towers",
    "contrastive.loss": "objective.loss",
    "contrastive.random_crop": "objective.random_crop",
    "zero_shot": "objective.zero_shot",
    "patch_dropout": "objective.patch_dropout",
    "simclr.temperature": "objective.temperature",
    "simclr.pool": "objective.pool",
    "simclr.head_layers": "objective.head_layers",
    "simclr.head_dim": "objective.head_dim",
    "simclr.augmentation": "objective.augmentation",
    "label_smoothing": "objective.label_smoothing",
    "distillation": "objective.distillation",
    "augmentation": "objective.augmentation",
    "zero_stage": "distributed.zero_stage",
    "offload": "distributed.offload",
    "activation_checkpointing": "distributed.activation_checkpointing",
    "deepspeed": "distributed.deepspeed",
    "trackers": "monitoring.trackers",
    "peak_tflops": "monitoring.peak_tflops",
    "stability": "monitoring.stability",
}
"""Old dotted key -> new dotted key."""


def load_run_config(path: Path, overrides: list[str]) -> RunConfig:
    """The config of a run from its YAML file and `--key value` overrides.

    Raises:
        UserError: one line per mistake; a key at its old place, or of another trainer, is answered with ours.
    """
    return load_settings(RunConfig, path, overrides, Elsewhere(MOVED, FOREIGN_KEYS))


def load_written_config(path: Path) -> RunConfig:
    """The `config.yaml` that a run wrote into its directory, in this layout or an earlier one."""
    return validate(RunConfig, translated(read_yaml(path)), str(path))


def translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """A complete config of the earlier layout in today's; what is in today's layout stays as it is.

    The earlier layout wrote the keys of all objectives; those of other kinds are dropped.
    """
    values = dict(values)
    if not isinstance(values.get("objective"), str):
        return values
    kind = values["objective"]
    new: dict[str, Any] = {**values, "objective": {"kind": kind}}
    known = {".".join(key.path) for key in describe(RunConfig) if not key.kinds or kind in key.kinds}
    for old, place in MOVED.items():
        group, _, inner = old.rpartition(".")
        holder = values.get(group) if group else values
        if not holder or holder.get(inner) is None or (group and group != kind):
            continue
        top, _, name = place.rpartition(".")
        if place in known:
            new.setdefault(top, {})[name] = holder[inner]
    for old in MOVED:
        new.pop(old.partition(".")[0], None)
    return new
