"""What a run costs: operations, hours, money; and whether a cache of frozen towers' features would pay."""

from dataclasses import dataclass

from mmchat.data.mixture import Mixture
from mmchat.data.records import Rejected
from mmchat.errors import UserError
from mmchat.planning.steps import MicroBatch
from mmchat.training.config import RunConfig
from mmchat.training.monitoring.flops import ModelFlops, frozen_tower_flops
from mmchat.training.monitoring.peak_flops import GPUS, Gpu
from mmchat.training.objectives.assistant import AssistantObjective
from mmchat.training.objectives.base import Objective

MOST_RECORDS = 100_000
"""In a larger mixture images are counted as often as records name them."""


@dataclass(frozen=True)
class Cost:
    """operations: of a step, on the average of those looked at. hours, price: of all steps, None where not known."""

    operations: float
    hours: float | None
    price: float | None


@dataclass(frozen=True)
class CachePlan:
    """images: different ones (exact: not more than those). seconds: None where no rate is known.

    epochs: how many the run must have for the cache to pay: filling it takes a forward of each image.
    """

    images: int
    exact: bool
    bytes: int
    fill_seconds: float | None
    saved_seconds_per_epoch: float | None
    epochs: float


def find_gpu(name: str) -> Gpu:
    """By its short name or by torch's. Raises UserError for another."""
    known = {gpu.short.lower(): gpu for gpu in GPUS.values()} | {full.lower(): gpu for full, gpu in GPUS.items()}
    wanted = name.lower().replace(" ", "-") if name.lower() not in known else name.lower()
    if wanted not in known:
        names = ", ".join(gpu.short for gpu in GPUS.values())
        raise UserError(
            f"--gpu {name}: not in the table; there are {names}. For another give --gpu-memory GIB, and "
            "--monitoring.peak_tflops for its time"
        )
    return known[wanted]


def rate(config: RunConfig, gpu: Gpu | None, ranks: int, mfu: float) -> float | None:
    """FLOP/s that all ranks reach together; None where a rank's peak is not known."""
    if config.monitoring.peak_tflops is not None:
        return config.monitoring.peak_tflops * 1e12 * ranks * mfu
    return gpu.flops * ranks * mfu if gpu and config.precision == "bf16" else None


def cost_of(
    operations: ModelFlops | None,
    batches: list[MicroBatch],
    steps: int,
    total: int,
    flops_per_second: float | None,
    price: float | None,
) -> Cost | None:
    """None for a kind of model whose count is not known.

    batches: of so many `steps`, on all ranks. price: of all ranks for an hour.
    """
    if operations is None:
        return None
    per_step = sum(operations.count(b.views, b.lengths, b.supervised) for b in batches) / steps
    hours = per_step * total / flops_per_second / 3600 if flops_per_second else None
    return Cost(per_step, hours, hours * price if hours is not None and price is not None else None)


def cache_of(
    config: RunConfig, objective: Objective, mixture: Mixture, images: int, views: int, flops_per_second: float | None
) -> CachePlan | None:
    """images, views: that one epoch shows. None where no tower is frozen, or nothing has an image.

    Different images are taken to have as many views each as those of an epoch.
    """
    if not isinstance(objective, AssistantObjective) or not images:
        return None
    frozen = [tower for tower in objective.model.towers if not any(p.requires_grad for p in tower.parameters())]
    if not frozen:
        return None
    distinct, exact = _different_images(mixture, images)
    each = frozen_tower_flops(objective.model) * views / images
    element = 2 if config.precision == "bf16" else 4
    size = sum(tower.spec.tokens * tower.spec.dim for tower in frozen) * element
    seconds = (
        (each * distinct / flops_per_second, each * images / flops_per_second) if flops_per_second else (None,) * 2
    )
    return CachePlan(distinct, exact, round(size * distinct * views / images), *seconds, epochs=distinct / images)


def _different_images(mixture: Mixture, images: int) -> tuple[int, bool]:
    if len(mixture) > MOST_RECORDS:
        return images, False
    records = (mixture.find(number)[1] for number in range(len(mixture)))
    return len({image for record in records if not isinstance(record, Rejected) for image in record.images}), True
