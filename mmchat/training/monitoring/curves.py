"""The training curves of a run as one image: losses, gradient norms, throughput, memory over optimizer steps."""

import math
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import (
    EngFormatter,
    Formatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

SMOOTHED = 1 / 40
"""Share of the steps on either side of a step over which its mean is taken."""
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.2,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.4,
    "lines.markersize": 3,
}
ACCURACIES = {
    "validation accuracy": {"validation_top1": "top1"},
    "zero-shot accuracy": {f"zero_shot_{name}": name.replace("_", " ") for name in ("top1", "top5", "mean_per_class")},
}
"""Panels drawn only if a run has such metrics: title -> {field of metrics.jsonl: name in the legend}."""
Rows = list[dict[str, Any]]


def draw_curves(rows: Rows, path: Path, title: str) -> None:
    """Draw the rows of a metrics.jsonl into a PNG; a panel without values says so."""
    rows = [{**row, **{f"norm of {name}": norm for name, norm in row.get("grad_norms", {}).items()}} for row in rows]
    modules = sorted({field for row in rows for field in row if field.startswith("norm of ")})
    memory = [{**row, "memory": row["memory"] / 2**30} for row in rows if "memory" in row]
    scored = [title for title, names in ACCURACIES.items() if any(names.keys() & row.keys() for row in rows)]
    panels = [["loss", "norm"], ["tokens", "images"], ["shares", "peak"], *([title] * 2 for title in scored)]
    with plt.rc_context(STYLE):
        figure, axes_of = plt.subplot_mosaic(panels, figsize=(10, 3 * len(panels)), layout="constrained")
        figure.suptitle(title, fontsize=12)
        loss, norm, tokens, images, shares, peak, *accuracies = axes_of.values()
        _draw(loss, rows, "loss", "nats", {"loss": "training", "validation_loss": "validation"}, smooth={"loss"})
        norms = {"grad_norm": "whole", **{field: field.removeprefix("norm of ") for field in modules}}
        _draw(norm, rows, "gradient norm", "L2, before clipping", norms, smooth=norms)
        for axes in (loss, norm):
            _logarithmic(axes)
        speeds = {"tokens_per_second": "all", "supervised_tokens_per_second": "supervised"}
        _draw(tokens, rows, "tokens", "tokens/s, all ranks", speeds)
        with_images = [row for row in rows if row.get("images")]
        _draw(images, with_images, "images", "images/s, all ranks", {"images_per_second": "images"})
        names = {"fill": "batch fill", "mfu": "MFU", "data_wait": "data wait"}
        _draw(shares, rows, "utilisation", "share", names, smooth={"fill"})
        _draw(peak, memory, "memory", "GiB, peak of the fullest rank", {"memory": "memory"})
        for axes, title in zip(accuracies, scored, strict=True):
            _draw(axes, rows, title, "share", ACCURACIES[title])
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        for axes, formatter in ((tokens, EngFormatter(sep="")), (images, EngFormatter(sep="")), (peak, None)):
            _from_zero(axes, formatter)
        _from_zero(shares, PercentFormatter(1))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _draw(axes: Axes, rows: Rows, title: str, unit: str, fields: dict[str, str], smooth: Iterable[str] = ()) -> None:
    """One line per field that any row has; fields in `smooth` as a moving mean, the first one over its raw values.

    Args:
        fields: field of a row -> name in the legend.
    """
    axes.set(title=title, ylabel=unit, xlabel="optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    for number, (field, name) in enumerate(fields.items()):
        found = [(row["step"], row[field]) for row in rows if row.get(field) is not None]
        if not found:
            continue
        steps, values = map(list, zip(*found, strict=True))
        if field in smooth:
            if number == 0:
                axes.plot(steps, values, color="C0", alpha=0.25, linewidth=0.8)
            values = moving_mean(values)
        axes.plot(steps, values, color=f"C{number}", label=name, marker="o" if len(steps) <= 40 else None)
    names = axes.get_legend_handles_labels()[1]
    if not names:
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", alpha=0.5)
        axes.tick_params(labelleft=False, labelbottom=False)
    elif len(names) > 3:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    elif len(names) > 1:  # next to the title, where no line can be hidden
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=len(names))


def moving_mean(values: list[float]) -> list[float]:
    """Mean over as many steps before as after each step, fewer towards both ends.

    It does not lag behind a falling loss, as a mean of earlier steps alone does: that still showed .95 at the end of a
    run whose losses were at .44.
    """
    count = len(values)
    sums = [0.0, *accumulate(values)]
    radii = [min(math.ceil(count * SMOOTHED), place, count - 1 - place) for place in range(count)]
    return [(sums[place + r + 1] - sums[place - r]) / (2 * r + 1) for place, r in enumerate(radii)]


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    bottom, top = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if top > 6 * bottom else MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _from_zero(axes: Axes, formatter: Formatter | None) -> None:
    top = max((max(line.get_ydata()) for line in axes.lines), default=0)
    axes.set_ylim(0, 1.08 * top or 1)
    if formatter:
        axes.yaxis.set_major_formatter(formatter)


RUN_PANELS = {
    "loss": ("loss", "nats"),
    "validation loss": ("validation_loss", "nats"),
    "tokens": ("tokens_per_second", "tokens/s, all ranks"),
    "memory": ("memory", "GiB, peak of the fullest rank"),
}
"""Panels over all runs: title -> (field of metrics.jsonl, unit)."""


def draw_runs(runs: dict[str, Rows], path: Path) -> None:
    """Draw several runs over each other into a PNG, one colour per run; losses as moving means.

    Args:
        runs: name -> rows of its metrics.jsonl.
    """
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 2, figsize=(10, 6.5), layout="constrained")
        for axes, (title, (field, unit)) in zip(grid.flat, RUN_PANELS.items(), strict=True):
            axes.set(title=title, ylabel=unit, xlabel="optimizer step")
            for number, (name, rows) in enumerate(runs.items()):
                found = [(row["step"], row[field]) for row in rows if row.get(field) is not None]
                if found:
                    steps, values = map(list, zip(*found, strict=True))
                    values = moving_mean(values) if field == "loss" else values
                    values = [value / 2**30 for value in values] if field == "memory" else values
                    marker = "o" if len(steps) <= 40 else None
                    axes.plot(steps, values, color=f"C{number}", label=name, marker=marker)
            if not axes.lines:
                axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", alpha=0.5)
            elif "loss" in title:
                _logarithmic(axes)
            else:
                _from_zero(axes, EngFormatter(sep="") if field == "tokens_per_second" else None)
        handles, names = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, max(1, len(names))))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)
