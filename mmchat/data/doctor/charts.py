"""Histograms as coordinates, which the page draws as SVG."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BINS = 40
TAIL = 99.5
"""Percentile up to which values get regular bins. Larger values share the last bin."""
FEW = 8
"""With at most this many distinct values, each has its own labelled bar."""
WIDTH, HEIGHT, BROADEST = 320, 110, 48


@dataclass(frozen=True)
class Bar:
    """A bar in a chart of WIDTH x HEIGHT pixels. `tip`: its tooltip."""

    x: float
    y: float
    width: float
    height: float
    tip: str


@dataclass(frozen=True)
class Chart:
    """A histogram. `ticks`: (x, anchor, text). `mark`: x of a limit. `quantiles`: (name, text)."""

    title: str
    bars: list[Bar]
    ticks: list[tuple[float, str, str]]
    quantiles: list[tuple[str, str]]
    mark: float | None = None


def histogram(title: str, values: np.ndarray, limit: int | None = None, decimals: int = 0) -> Chart | None:
    """A histogram of `values`, or None without values. `limit` is drawn as a line if it is within the chart."""
    if not len(values):
        return None

    def label(value: float) -> str:
        return f"{value:,.{decimals}f}"

    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= FEW:
        return Chart(title, *_one_bar_each(distinct, counts, label), quantiles(values, label))
    edges = _edges(values, decimals == 0)
    counts, _ = np.histogram(np.minimum(values, edges[-1]), edges)
    beyond = values.max() > edges[-1]
    return Chart(
        title,
        _bars(counts, _spans(edges, beyond, decimals == 0, label)),
        [
            (0, "start", label(edges[0])),
            (WIDTH / 2, "middle", label((edges[0] + edges[-1]) / 2)),
            (WIDTH, "end", label(edges[-1]) + ("+" if beyond else "")),
        ],
        quantiles(values, label),
        _place(limit, edges) if limit is not None and edges[0] <= limit <= edges[-1] else None,
    )


def quantiles(values: np.ndarray, label: Callable[[float], str]) -> list[tuple[str, str]]:
    low, median, high, largest = np.percentile(values, [0, 50, 95, 100])
    return [("min", label(low)), ("median", label(median)), ("95th percentile", label(high)), ("max", label(largest))]


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    low, high = float(values.min()), float(np.percentile(values, TAIL))
    if whole:
        # Integer-width bins, so that all bins cover the same number of integers.
        width = max(1, -(-int(high - low + 1) // BINS))
        return low + width * np.arange(int((high - low) // width) + 2)
    return np.linspace(low, high if high > low else low + 1, BINS + 1)


def _one_bar_each(
    distinct: np.ndarray, counts: np.ndarray, label: Callable[[float], str]
) -> tuple[list[Bar], list[tuple[float, str, str]]]:
    names = [label(value) for value in distinct.tolist()]
    width = WIDTH / len(names)
    return _bars(counts, names), [((number + 0.5) * width, "middle", name) for number, name in enumerate(names)]


def _spans(edges: np.ndarray, beyond: bool, whole: bool, label: Callable[[float], str]) -> list[str]:
    """The range of each bin, as text."""
    spans = []
    for start, stop in zip(edges[:-1].tolist(), (edges[1:] - whole).tolist(), strict=True):
        spans.append(label(start) if start == stop else f"{label(start)} to {label(stop)}")
    if beyond:
        spans[-1] = f"{label(edges[-2])} and more"
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
