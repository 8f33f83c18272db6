"""Bootstrap over images: how much a figure would differ with other images of the same kind."""

from collections.abc import Callable, Sequence

import numpy as np

from mmchat.evaluation.metrics import Interval, middle_95

DRAWS = 1000
AT_ONCE = 1 << 22
"""Numbers that are drawn at a time."""
Totals = np.ndarray
"""float[draws, K]."""


def by_image(sums: np.ndarray, images: Sequence[str]) -> np.ndarray:
    """Rows of questions added up by image, in the order in which images first occur: questions about one image are not
    independent.

    Args:
        sums: float[N, K].
        images: N keys.

    Returns:
        float[images, K].
    """
    numbers: dict[str, int] = {}
    places = np.array([numbers.setdefault(image, len(numbers)) for image in images])
    total = np.zeros((len(numbers), sums.shape[1]))
    np.add.at(total, places, sums)
    return total


def resampled(units: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Totals:
    """Totals of samples of as many units, drawn with replacement. The same seed and number draw the same units.

    Args:
        units: float[U, K].
        draws: Number of samples.
        seed: Of the draws.
    """
    rng, count = np.random.default_rng(seed), len(units)
    totals = np.empty((draws, units.shape[1]))
    step = max(1, AT_ONCE // max(1, count))
    for start in range(0, draws, step):
        chosen = rng.integers(count, size=(min(step, draws - start), count))
        for row, places in enumerate(chosen, start):
            totals[row] = np.bincount(places, minlength=count) @ units
    return totals


def intervals(units: np.ndarray, figures: Callable[[np.ndarray], dict[str, float]]) -> dict[str, Interval]:
    """The interval of each figure."""
    drawn = [figures(total) for total in resampled(units)]
    return {name: middle_95([one[name] for one in drawn]) for name in drawn[0]}
