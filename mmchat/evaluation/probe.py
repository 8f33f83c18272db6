"""Linear probes of a tower's frozen features, by CLIP's protocol (Radford et al. 2021, arXiv:2103.00020, appendix A.3).

Logistic regression on unscaled features, with scikit-learn's L-BFGS and at most 1,000 iterations. The regularisation is
chosen between 1e-6 and 1e6 on a validation split: first every second decade, then around the best in halved steps, down
to 1/8 of a decade. The final fit uses training and validation images.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from rich.table import Table

from mmchat.errors import UserError
from mmchat.evaluation.metrics import share_interval
from mmchat.extras import require
from mmchat.vision import TowerSpec, VisionTower, normalise, preprocess, refuse_several_views
from mmchat.vision.classifier import pooled_features

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

STEPS_PER_DECADE, DECADES = 8, 12
MAX_ITERATIONS = 1000
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class ProbeResult:
    """The score of one set of features.

    hits: right predictions among `total` test images.
    regularisation: lambda, scikit-learn's 1 / C.
    """

    name: str
    hits: int
    total: int
    regularisation: float

    @property
    def accuracy(self) -> float:
        return self.hits / self.total

    @property
    def interval(self) -> tuple[float, float]:
        return share_interval(self.hits, self.total)


Features = tuple[np.ndarray, np.ndarray]
"""Features float[n, D] and their classes int[n]."""


def probe(name: str, train: Features, test: Features, seed: int = 0) -> ProbeResult:
    """Choose the regularisation on a part of `train`, fit on all of it, score on `test`.

    Args:
        name: what the features are called in the table.
        train: features and classes for fitting and validation.
        test: features and classes for the score.
        seed: of the validation split.

    Raises:
        UserError: a class has too few images for a validation split.
    """
    require("sklearn")
    from sklearn.model_selection import train_test_split

    features, classes = train
    if np.bincount(classes)[np.unique(classes)].min() < 2:
        raise UserError(
            "a probe needs two or more training images of each class, because one is held back for validation"
        )
    held_back = max(round(VALIDATION_SHARE * len(classes)), len(np.unique(classes)))
    fit_features, val_features, fit_classes, val_classes = train_test_split(
        features, classes, test_size=held_back, stratify=classes, random_state=seed
    )

    def validated(regularisation: float) -> float:
        return _fitted(fit_features, fit_classes, regularisation).score(val_features, val_classes)

    best = search(validated)
    hits = int((_fitted(features, classes, best).predict(test[0]) == test[1]).sum())
    return ProbeResult(name, hits, len(test[1]), best)


def search(score: Callable[[float], float]) -> float:
    """The regularisation with the best score, in steps of 1/8 decade; of equal ones the nearest to 1.

    Args:
        score: regularisation -> validation score. It is called once per value.
    """
    scores: dict[int, float] = {}

    def best_of(places: list[int]) -> int:
        for place in places:
            if place not in scores:
                scores[place] = score(_at(place))
        return max(places, key=lambda place: (scores[place], -abs(place - last // 2), place))

    last, step = STEPS_PER_DECADE * DECADES, 2 * STEPS_PER_DECADE
    best = best_of(list(range(0, last + 1, step)))
    while step > 1:
        step //= 2
        best = best_of([place for place in (best - step, best, best + step) if 0 <= place <= last])
    return _at(best)


def _at(place: int) -> float:
    return 10.0 ** (place / STEPS_PER_DECADE - DECADES / 2)


def _fitted(features: np.ndarray, classes: np.ndarray, regularisation: float) -> "LogisticRegression":
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=1 / regularisation, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol stops at the limit
        return regression.fit(features, classes)


@torch.no_grad()
def tower_features(tower: VisionTower, pixels: np.ndarray, pool: str, batch_size: int = 64) -> np.ndarray:
    """One feature per image.

    Args:
        tower: the tower, on any device.
        pixels: uint8[n, 3, H, W].
        pool: as in `pooled_features`, whose UserError it also raises.

    Returns:
        float32[n, D].
    """
    tower.eval()
    device = next(tower.parameters()).device
    found = []
    for start in range(0, len(pixels), batch_size):
        values = torch.from_numpy(normalise(pixels[start : start + batch_size], tower.spec)).to(device)
        found.append(pooled_features(tower, values, pool).float().cpu())
    return torch.cat(found).numpy()


def tower_pixels(images: list[Image.Image], spec: TowerSpec) -> np.ndarray:
    """The images after preprocessing: uint8[n, 3, H, W].

    Raises:
        UserError: the tower sees several views of an image, or images of different sizes.
    """
    refuse_several_views(spec, "a probe")
    if spec.preprocessing.fit == "longest-edge-pad":
        raise UserError("a probe needs images of one size, but the tower's fit is 'longest-edge-pad'")
    return np.concatenate([preprocess(image, spec) for image in images])


def raw_pixels(pixels: np.ndarray) -> np.ndarray:
    """uint8[n, 3, H, W] -> float32[n, D] from 0 to 1. If all images are gray, one channel is enough."""
    gray = (pixels == pixels[:, :1]).all()
    return (pixels[:, :1] if gray else pixels).reshape(len(pixels), -1).astype(np.float32) / 255


def probe_table(results: list[ProbeResult]) -> Table:
    """A row per set of features."""
    table = Table(title="linear probes", title_justify="left")
    table.add_column("features", overflow="fold")
    for column in ("accuracy", "95 % interval", "right", "regularisation"):
        table.add_column(column, justify="right")
    for result in results:
        low, high = result.interval
        figures = (f"{result.accuracy:.1%}", f"{low:.1%} to {high:.1%}", f"{result.hits} of {result.total}")
        table.add_row(result.name, *figures, f"{result.regularisation:.3g}")
    return table
