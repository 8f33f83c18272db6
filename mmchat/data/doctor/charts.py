"""Histograms as plain numbers, which the page draws as SVG in its own colours."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BINS = 40
TAIL = 99.5
"""Percent of the values that get bins of their own; what is longer shares the last one."""
FEW = 8
"""Distinct values up to which each has a bar with its name."""
WIDTH, HEIGHT, BROADEST = 320, 110, 48


@dataclass(frozen=True)
class Bar:
    """In pixels of a chart of WIDTH x HEIGHT; tip: what the bar counts."""

    x: float
    y: float
    width: float
    height: float
    tip: str


@dataclass(frozen=True)
class Chart:
    """ticks: (x, anchor, text). mark: where a limit stands. quantiles: (name, text)."""

    title: str
    bars: list[Bar]
    ticks: list[tuple[float, str, str]]
    quantiles: list[tuple[str, str]]
    mark: float | None = None


def histogram(title: str, values: np.ndarray, limit: int | None = None, decimals: int = 0) -> Chart | None:
    """values: any numbers; None where there is none. limit: drawn as a line if it lies within the chart."""
    if not len(values):
        return None

    def say(value: float) -> str:
        return f"{value:,.{decimals}f}"

    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= FEW:
        return Chart(title, *_one_bar_each(distinct, counts, say), quantiles(values, say))
    edges = _edges(values, decimals == 0)
    counts, _ = np.histogram(np.minimum(values, edges[-1]), edges)
    beyond = values.max() > edges[-1]
    return Chart(
        title,
        _bars(counts, _spans(edges, beyond, decimals == 0, say)),
        [
            (0, "start", say(edges[0])),
            (WIDTH / 2, "middle", say((edges[0] + edges[-1]) / 2)),
            (WIDTH, "end", say(edges[-1]) + ("+" if beyond else "")),
        ],
        quantiles(values, say),
        _place(limit, edges) if limit is not None and edges[0] <= limit <= edges[-1] else None,
    )


def quantiles(values: np.ndarray, say: Callable[[float], str]) -> list[tuple[str, str]]:
    low, median, high, largest = np.percentile(values, [0, 50, 95, 100])
    return [("least", say(low)), ("median", say(median)), ("95 % up to", say(high)), ("most", say(largest))]


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    low, high = float(values.min()), float(np.percentile(values, TAIL))
    if whole:
        # Whole numbers get bins of whole width, so that no bin counts more of them than its neighbour.
        width = max(1, -(-int(high - low + 1) // BINS))
        return low + width * np.arange(int((high - low) // width) + 2)
    return np.linspace(low, high if high > low else low + 1, BINS + 1)


def _one_bar_each(
    distinct: np.ndarray, counts: np.ndarray, say: Callable[[float], str]
) -> tuple[list[Bar], list[tuple[float, str, str]]]:
    names = [say(value) for value in distinct.tolist()]
    width = WIDTH / len(names)
    return _bars(counts, names), [((number + 0.5) * width, "middle", name) for number, name in enumerate(names)]


def _spans(edges: np.ndarray, beyond: bool, whole: bool, say: Callable[[float], str]) -> list[str]:
    """What each bin holds, in words."""
    spans = []
    for start, stop in zip(edges[:-1].tolist(), (edges[1:] - whole).tolist(), strict=True):
        spans.append(say(start) if start == stop else f"{say(start)} to {say(stop)}")
    if beyond:
        spans[-1] = f"{say(edges[-2])} and more"
    return spans


def _bars(counts: np.ndarray, names: list[str]) -> list[Bar]:
    width = WIDTH / len(counts)
    broad = min(width - 1, BROADEST)
    bars = []
    for number, (count, name) in enumerate(zip(counts.tolist(), names, strict=True)):
        height = max(1.0, HEIGHT * count / counts.max())
        if count:
            x = (number + 0.5) * width - broad / 2
            bars.append(Bar(x, HEIGHT - height, broad, height, f"{name}: {count:,}"))
    return bars


def _place(value: float, edges: np.ndarray) -> float:
    return float(WIDTH * (value - edges[0]) / (edges[-1] - edges[0]))
