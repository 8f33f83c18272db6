"""Cost of a run: operations, hours, price; and whether caching the features of frozen towers would pay."""

from dataclasses import dataclass

from mmchat.data.mixture import Mixture
from mmchat.data.records import Rejected
from mmchat.planning.steps import PlannedMicroBatch
from mmchat.training.monitoring.flops import ModelFlops, tower_flops
from mmchat.training.monitoring.gpus import Gpu
from mmchat.vision import VisionTower

MOST_RECORDS = 100_000
"""In larger mixtures, images that several records share are counted once per record."""


@dataclass(frozen=True)
class Cost:
    """Cost of a run.

    Attributes:
        operations: per step, averaged over the planned steps.
        hours, price: of all steps; None if unknown.
    """

    operations: float
    hours: float | None
    price: float | None


@dataclass(frozen=True)
class CachePlan:
    """A feature cache for this run.

    Attributes:
        images: different images; an upper bound unless `exact`.
        fill_seconds, saved_seconds_per_epoch: None if the speed is unknown.
        epochs: from how many epochs on the cache pays: filling it takes one forward per image.
    """

    images: int
    exact: bool
    bytes: int
    fill_seconds: float | None
    saved_seconds_per_epoch: float | None
    epochs: float


def achieved_flops(peak_tflops: float | None, precision: str, gpu: Gpu | None, ranks: int, mfu: float) -> float | None:
    """FLOP/s that all ranks reach together; None if the peak of a rank is unknown."""
    if peak_tflops is not None:
        return peak_tflops * 1e12 * ranks * mfu
    return gpu.flops * ranks * mfu if gpu and precision == "bf16" else None


def plan_cost(
    operations: ModelFlops | None,
    batches: list[PlannedMicroBatch],
    steps: int,
    total: int,
    flops_per_second: float | None,
    price: float | None,
) -> Cost | None:
    """Cost of the run; None if the operations of the model are unknown.

    Args:
        batches: of `steps` steps, on all ranks.
        total: steps of the run.
        price: of all ranks per hour.
    """
    if operations is None:
        return None
    per_step = sum(operations.count(b.views, b.lengths, b.supervised) for b in batches) / steps
    hours = per_step * total / flops_per_second / 3600 if flops_per_second else None
    return Cost(per_step, hours, hours * price if hours is not None and price is not None else None)


def plan_feature_cache(
    towers: list[VisionTower],
    precision: str,
    mixture: Mixture,
    images: int,
    views: int,
    flops_per_second: float | None,
) -> CachePlan | None:
    """A feature cache for the frozen towers; None if there are none or no record has an image.

    Args:
        towers: whose features would be cached.
        images, views: of one epoch. Different images are assumed to have as many views each as those of an epoch.
    """
    if not towers or not images:
        return None
    distinct, exact = _different_images(mixture, images)
    per_image = tower_flops(towers) * views / images
    element = 2 if precision == "bf16" else 4
    size = sum(tower.spec.tokens * tower.spec.dim for tower in towers) * element
    fill, saved = (per_image * count / flops_per_second if flops_per_second else None for count in (distinct, images))
    return CachePlan(distinct, exact, round(size * distinct * views / images), fill, saved, epochs=distinct / images)


def _different_images(mixture: Mixture, images: int) -> tuple[int, bool]:
    if len(mixture) > MOST_RECORDS:
        return images, False
    records = (mixture.find(number)[1] for number in range(len(mixture)))
    return len({image for record in records if not isinstance(record, Rejected) for image in record.images}), True
