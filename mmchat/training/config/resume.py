"""What may differ when a run is resumed. Everything else must be equal: another value would make it another run."""

from typing import Any

from mmchat.training.config.run import RunConfig, as_dict

MAY_CHANGE_ON_RESUME = frozenset(
    {
        # Where the run is and how it was started. The directory may have been moved, or be spelled in another way.
        "run_dir",
        "resume",
        # A path. What the file holds must not change (`training.run_dir`), since any feature of DeepSpeed can change
        # the result.
        "distributed.deepspeed",
        # How a step is computed, up to rounding, but not which samples it holds.
        "workers",
        "micro_batch_size",
        "objective.packing",
        "objective.feature_cache",
        "distributed.offload",
        "fused_kernels",
        "compile",
        "distributed.activation_checkpointing",
        # What is measured and saved, which the weights do not depend on.
        "validation",
        "objective.zero_shot",
        "checkpoint",
        "monitoring.trackers",
        "monitoring.peak_tflops",
        "save_precision",
        # What a run does with a sample or step that it cannot use: the remedy for a run that stopped at one. Up to that
        # step both settings compute the same, or have listed what was left out.
        "on_bad_sample",
        "monitoring.stability",
    }
)
"""Dotted keys; a group stands for all its keys.

Not `distributed.zero_stage`, which decides how a checkpoint is sharded.
"""


def changed_keys(before: RunConfig, now: RunConfig) -> list[str]:
    """`key: old -> new` for each key that differs and must not."""
    old, new = _leaves(as_dict(before)), _leaves(as_dict(now))
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key) and not may_change(key)]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys]


def may_change(key: str) -> bool:
    """Whether a dotted key, or a group that it belongs to, may differ on resume."""
    parts = key.split(".")
    return any(".".join(parts[:depth]) in MAY_CHANGE_ON_RESUME for depth in range(1, len(parts) + 1))


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and value
        found |= _leaves(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found
