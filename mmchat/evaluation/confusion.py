"""The confusion matrix of a classifier, as an image."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter

NAMED_CLASSES, NUMBERED_CLASSES = 60, 25
"""With more classes, their names or the numbers in the cells would be unreadable and are left out."""


def draw_confusion(counts: np.ndarray, classes: list[str], path: Path) -> None:
    """Write a confusion matrix as PNG.

    Args:
        counts: int[C, C]; rows are the right classes, columns the predicted ones. Colours show the share of the row.
        classes: names, C.
        path: the file; its folder is made.
    """
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    size = float(np.clip(0.42 * len(classes) + 2.5, 5, 18))
    figure, axes = plt.subplots(figsize=(size + 1, size), layout="constrained")
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="class")
    if len(classes) <= NAMED_CLASSES:
        names = [name if len(name) <= 24 else f"{name[:23]}…" for name in classes]
        plain = {"parse_math": False, "fontsize": 9}  # a name may hold dollars
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", **plain)
        axes.set_yticks(range(len(names)), names, **plain)
    if len(classes) <= NUMBERED_CLASSES:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(drawn, label="share of the class", format=PercentFormatter(1), shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
