"""What two variants' measurements say together: whether they computed the same, and how they compare."""

from statistics import median
from typing import Any

Measured = dict[str, Any]
"""What a variant's process wrote (`variant.py`)."""

WARM = 3
"""Steps before the measured ones: buffers, caches and the heap find their sizes."""
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-4, 1e-3
"""Largest relative differences in fp32, of the loss and of the gradient's norms."""


def disagreement(a: Measured, b: Measured) -> dict[str, float]:
    """Relative differences in the first step: of the loss, of the gradient's norm, and of its norm by trained module.

    Raises:
        ValueError: they did not train the same modules.
    """
    first, second = a["steps"][0], b["steps"][0]
    modules, others = first["grad_norms"], second["grad_norms"]
    if modules.keys() != others.keys():
        raise ValueError(f"A trained {', '.join(modules)}, but B {', '.join(others)}")
    pairs = {"loss": (first["loss"], second["loss"]), "gradient": (first["grad_norm"], second["grad_norm"])}
    pairs |= {name: (modules[name], others[name]) for name in modules}
    return {name: abs(one - other) / abs(one) for name, (one, other) in pairs.items()}


def agree(found: dict[str, float]) -> bool:
    return all(value <= (LOSS_TOLERANCE if name == "loss" else NORM_TOLERANCE) for name, value in found.items())


def figures(rounds: list[tuple[Measured, Measured]]) -> list[dict[str, float]]:
    """Of each round. MFU is a share of the fastest matrix products that any process of this run measured."""
    peak = max(measured["peak"] for pair in rounds for measured in pair)
    return [_round(a, b, peak) for a, b in rounds]


def _round(a: Measured, b: Measured, peak: float) -> dict[str, float]:
    """Both had the same samples in the same steps, unless A packs them. What a token costs, B knows."""
    steps_a, steps_b = a["steps"][WARM:], b["steps"][WARM:]
    tokens_a, tokens_b = _sum(steps_a, "tokens"), _sum(steps_b, "tokens")
    rate_a, rate_b = tokens_a / _sum(steps_a, "seconds"), tokens_b / _sum(steps_b, "seconds")
    cpu_a, cpu_b = _sum(steps_a, "cpu_seconds"), _sum(steps_b, "cpu_seconds")
    operations = _sum(steps_b, "operations") / tokens_b
    losses = [(one["loss"], other["loss"]) for one, other in zip(a["steps"], b["steps"], strict=True)]
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
        "loss_difference": max(abs(one - other) / abs(one) for one, other in losses),
    }


def _sum(steps: list[dict[str, Any]], name: str) -> float:
    return sum(step[name] for step in steps)


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(one[name] for one in rounds) for name in rounds[0]}


def summary(rounds: list[dict[str, float]]) -> str:
    """For people."""
    middle, ratios = medians(rounds), sorted(one["speed_ratio"] for one in rounds)
    memory_a, memory_b = middle["memory_a"] / 2**30, middle["memory_b"] / 2**30
    return (
        f"{middle['speed_ratio']:.2f} x the real tokens/s of A ({ratios[0]:.2f} to {ratios[-1]:.2f}; "
        f"{middle['tokens_per_second_b']:,.0f} against {middle['tokens_per_second_a']:,.0f}; "
        f"by CPU time {middle['cpu_seconds_ratio']:.2f}; {middle['fill_a']:.0%} of A's positions are tokens), "
        f"{middle['memory_ratio']:.2f} x its peak memory ({memory_b:.2f} against {memory_a:.2f} GiB), "
        f"MFU {middle['mfu_b']:.1%} against {middle['mfu_a']:.1%}, "
        f"ready after {middle['ready_b']:.1f} s, {middle['data_wait_b']:.1%} of the time waiting for data"
    )


def told(found: dict[str, float]) -> str:
    """The disagreement, for people."""
    norms = max(value for name, value in found.items() if name != "loss")
    return f"in fp32 the loss differs by {found['loss']:.0e}, gradient norms by {norms:.0e}"
