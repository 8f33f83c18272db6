"""Compares the measurements of two variants: whether they computed the same, and their speed and memory."""

from statistics import median
from typing import Any

Measurement = dict[str, Any]
"""What the process of a variant wrote (`variant.py`)."""

WARMUP_STEPS = 3
"""Steps before the measured ones, in which buffers, caches and the heap reach their sizes."""
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-4, 1e-3
"""Largest relative differences in fp32, of the loss and of gradient norms."""


def relative_differences(a: Measurement, b: Measurement) -> dict[str, float]:
    """Relative differences in the first step: of the loss, the gradient norm, and the gradient norm by trained module.

    Raises:
        ValueError: the variants did not train the same modules.
    """
    step_a, step_b = a["steps"][0], b["steps"][0]
    norms_a, norms_b = step_a["grad_norms"], step_b["grad_norms"]
    if norms_a.keys() != norms_b.keys():
        raise ValueError(f"A trained {', '.join(norms_a)}, but B {', '.join(norms_b)}")
    pairs = {"loss": (step_a["loss"], step_b["loss"]), "gradient": (step_a["grad_norm"], step_b["grad_norm"])}
    pairs |= {name: (norms_a[name], norms_b[name]) for name in norms_a}
    return {name: abs(value_a - value_b) / abs(value_a) for name, (value_a, value_b) in pairs.items()}


def within_tolerance(differences: dict[str, float]) -> bool:
    return all(value <= (LOSS_TOLERANCE if name == "loss" else NORM_TOLERANCE) for name, value in differences.items())


def compare_rounds(rounds: list[tuple[Measurement, Measurement]]) -> list[dict[str, float]]:
    """Speed, memory and MFU of each round. MFU is relative to the highest peak that any process measured."""
    peak = max(measurement["peak"] for pair in rounds for measurement in pair)
    return [_compare(a, b, peak) for a, b in rounds]


def _compare(a: Measurement, b: Measurement, peak: float) -> dict[str, float]:
    """Both had the same samples in the same steps, unless A packs them. Operations per token are taken from B."""
    steps_a, steps_b = a["steps"][WARMUP_STEPS:], b["steps"][WARMUP_STEPS:]
    tokens_a, tokens_b = _sum(steps_a, "tokens"), _sum(steps_b, "tokens")
    rate_a, rate_b = tokens_a / _sum(steps_a, "seconds"), tokens_b / _sum(steps_b, "seconds")
    cpu_a, cpu_b = _sum(steps_a, "cpu_seconds"), _sum(steps_b, "cpu_seconds")
    operations = _sum(steps_b, "operations") / tokens_b
    losses = [(step_a["loss"], step_b["loss"]) for step_a, step_b in zip(a["steps"], b["steps"], strict=True)]
    return {
        "speed_ratio": rate_b / rate_a,
        "cpu_seconds_ratio": (cpu_a / tokens_a) / (cpu_b / tokens_b),
        "kernel_share_a": _sum(steps_a, "kernel_seconds") / cpu_a,
        "kernel_share_b": _sum(steps_b, "kernel_seconds") / cpu_b,
        "memory_ratio": b["memory"] / a["memory"],
        "tokens_per_second_a": rate_a,
        "tokens_per_second_b": rate_b,
        "memory_a": a["memory"],
        "memory_b": b["memory"],
        "memory_of_workers_b": b["memory_of_workers"],
        "mfu_a": operations * rate_a / peak,
        "mfu_b": operations * rate_b / peak,
        "fill_a": tokens_a / _sum(steps_a, "positions"),
        "fill_b": tokens_b / _sum(steps_b, "positions"),
        "data_wait_b": _sum(steps_b, "waited") / _sum(steps_b, "seconds"),
        "ready_a": a["ready"],
        "ready_b": b["ready"],
        "loss_difference": max(abs(loss_a - loss_b) / abs(loss_a) for loss_a, loss_b in losses),
    }


def _sum(steps: list[dict[str, Any]], name: str) -> float:
    return sum(step[name] for step in steps)


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(figures[name] for figures in rounds) for name in rounds[0]}


def summary(rounds: list[dict[str, float]]) -> str:
    """The line that `train.py` prints."""
    median_of, ratios = medians(rounds), sorted(figures["speed_ratio"] for figures in rounds)
    memory_a, memory_b = median_of["memory_a"] / 2**30, median_of["memory_b"] / 2**30
    return (
        f"{median_of['speed_ratio']:.2f} x the real tokens/s of A ({ratios[0]:.2f} to {ratios[-1]:.2f}; "
        f"{median_of['tokens_per_second_b']:,.0f} against {median_of['tokens_per_second_a']:,.0f}; "
        f"by CPU time {median_of['cpu_seconds_ratio']:.2f}; {median_of['fill_a']:.0%} of A's positions are tokens), "
        f"{median_of['memory_ratio']:.2f} x its peak memory ({memory_b:.2f} against {memory_a:.2f} GiB), "
        f"MFU {median_of['mfu_b']:.1%} against {median_of['mfu_a']:.1%}, "
        f"ready after {median_of['ready_b']:.1f} s, {median_of['data_wait_b']:.1%} of the time waiting for data"
    )


def fp32_summary(differences: dict[str, float]) -> str:
    norms = max(value for name, value in differences.items() if name != "loss")
    return f"in fp32 the loss differs by {differences['loss']:.0e}, gradient norms by {norms:.0e}"
