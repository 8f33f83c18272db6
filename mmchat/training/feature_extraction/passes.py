"""Passes of all ranks over samples and images, and the towers' forward: used by `feature_extraction.fill_cache`."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from mmchat.data.collate import pixel_values
from mmchat.data.feature_cache import FeatureStore, FeatureWriter, key_array, view_keys
from mmchat.data.mixture import Mixture
from mmchat.data.order import split_micro_batches
from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Rejected
from mmchat.errors import SharedError, UserError
from mmchat.images import load_image
from mmchat.model.image_processor import MMChatImageProcessor
from mmchat.progress import progress_bar
from mmchat.training.distributed import collectives, process_group
from mmchat.training.distributed.data_workers import start_data_worker
from mmchat.training.distributed.signals import StopSignals, exit_status
from mmchat.vision import TowerSpec, VisionTower

FoundView = tuple[bytes, int, int, int]
"""Key of an image's view, and where the image is: mixture, sample, index in the record."""

VIEWS = 32
"""Largest number of views in one forward of a tower; a single image of many tiles may have a third of them."""


@dataclass(frozen=True)
class DistributedPass:
    """A pass over a data set in which all ranks advance in step, so that an error or signal stops all of them at once.

    Attributes:
        workers: data workers of each rank.
    """

    workers: int
    quarantine: Quarantine
    signals: StopSignals

    def run(
        self,
        title: str,
        dataset: Any,
        size: int,
        take: Callable[[Any], None],
        finish: Callable[[], None] = lambda: None,
    ) -> int:
        """Call `take` with this rank's items, `size` at a time, and then `finish`.

        Returns:
            The exit status of a signal that stopped it, or 0.

        Raises:
            SharedError: a UserError on any rank, or an unusable item if `on_bad_sample` is "stop". (With "skip" the
                training step leaves it out, as without a cache.)
        """
        rank, world_size = process_group.rank(), process_group.world_size()
        share = math.ceil(len(dataset) / world_size)
        batches = split_micro_batches(range(len(dataset)), min(size, share), rank, world_size)
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=dataset.collate,
            num_workers=self.workers,
            generator=torch.Generator(),  # of its own, as the run's loader has
            worker_init_fn=start_data_worker,
        )

        def take_usable(items: Any, rejected: list[Rejected]) -> None:
            if self.quarantine.policy == "stop":
                for item in rejected:
                    self.quarantine.add(item)
            take(items)

        status = 0
        with progress_bar(title, len(dataset), enabled=process_group.rank() == 0) as bar:
            for batch, (items, rejected) in zip(batches, loader, strict=True):
                problem = _problem_of(take_usable, items, rejected)
                done, *flags = _agree(problem, len(batch), *self.signals.flags())
                bar.advance(done)
                if status := exit_status(flags):
                    break
        _agree(_problem_of(finish))
        return status


def _problem_of(work: Callable[..., None], *arguments: Any) -> str | None:
    """Run `work`; the message of a UserError, or None."""
    try:
        work(*arguments)
    except UserError as error:
        return str(error)
    return None


def _agree(problem: str | None, *counts: int) -> list[int]:
    """The counts, summed over ranks. Raises SharedError if any rank has a problem."""
    problems, *sums = collectives.all_reduce(torch.tensor([int(problem is not None), *counts])).tolist()
    if problems:
        raise SharedError(collectives.all_gather([problem] if problem else [])[0])
    return sums


@dataclass(frozen=True)
class SampleKeys:
    """Data set of samples; an item is the list[FoundView] of its images, or Rejected.

    Attributes:
        samples: int64[n, 2]: index in `mixtures`, number of the sample.
        spec: of any tower.
    """

    mixtures: Sequence[Mixture]
    samples: np.ndarray
    spec: TowerSpec

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, at: int) -> list[FoundView] | Rejected:
        which, number = self.samples[at].tolist()
        record = self.mixtures[which].find(number)[1]
        if isinstance(record, Rejected):
            return record
        try:
            several = len(record.images) > 1
            keys = [view_keys(image.read(), self.spec, image.name, several) for image in record.images]
        except UserError as error:
            return Rejected(record.where, record.id, str(error), error.kind)
        return [(key, which, number, place) for place, of_image in enumerate(keys) for key in of_image]

    def collate(self, items: list) -> tuple[list[FoundView], list[Rejected]]:
        usable, rejected = _split_rejected(items)
        return [one for found in usable for one in found], rejected


@dataclass(frozen=True)
class ImagePixels:
    """Data set of images; an item is (a key per view, per tower uint8[views, 3, H, W]), or Rejected.

    Attributes:
        images: int64[n, 3]: mixture, sample, index in the record.
    """

    mixtures: Sequence[Mixture]
    images: np.ndarray
    image_processor: MMChatImageProcessor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> tuple[list[bytes], list[np.ndarray]] | Rejected:
        which, number, place = self.images[at].tolist()
        record = self.mixtures[which].find(number)[1]
        if isinstance(record, Rejected):
            return record
        image, several = record.images[place], len(record.images) > 1
        try:
            data = image.read()
            keys = view_keys(data, self.image_processor.specs[0], image.name, several)
            return keys, self.image_processor.pixels(load_image(data, name=image.name), several)
        except UserError as error:
            return Rejected(record.where, record.id, str(error), error.kind)

    def collate(self, items: list) -> tuple[tuple[list[bytes], list[torch.Tensor] | None], list[Rejected]]:
        """Keys, and per tower float32[views, 3, H, W] or None without images; and the rejected items."""
        usable, rejected = _split_rejected(items)
        pixels = pixel_values([pixels for _, pixels in usable], self.image_processor.specs)
        return ([key for keys, _ in usable for key in keys], pixels), rejected


def _split_rejected(items: list) -> tuple[list, list[Rejected]]:
    rejected = [item for item in items if isinstance(item, Rejected)]
    return [item for item in items if not isinstance(item, Rejected)], rejected


class FeatureFiller:
    """Runs the towers on this rank and writes their features."""

    def __init__(
        self, towers: Sequence[VisionTower], stores: list[FeatureStore], precision: str, shard_bytes: int
    ) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._towers, self._stores = [tower.to(self._device) for tower in towers], stores
        self._rounds = precision == "bf16"
        self._writers = [FeatureWriter(store, shard_bytes) for store in stores]

    @torch.no_grad()
    def add(self, views: tuple[list[bytes], list[torch.Tensor] | None]) -> None:
        """Run every tower on those views whose features it lacks, and write these.

        Raises:
            UserError: they cannot be written.
        """
        keys, per_tower = views
        for number, pixels in enumerate(per_tower or []):
            # A killed run may have written the shard of one tower and not of another.
            missing = np.flatnonzero(~self._stores[number].has(key_array(keys))).tolist()
            if missing:
                records = self._features(self._towers[number], pixels[missing])
                with _explained(self._stores[number].folder):
                    for at, record in zip(missing, records, strict=True):
                        self._writers[number].add(keys[at], record)

    def flush(self) -> None:
        """Write what is buffered. Raises UserError as `add`."""
        for store, writer in zip(self._stores, self._writers, strict=True):
            with _explained(store.folder):
                writer.flush()

    def written_by_all(self) -> int:
        """Bytes written by all ranks."""
        return int(collectives.all_reduce(torch.tensor(sum(writer.written for writer in self._writers))).item())

    def _features(self, tower: VisionTower, pixels: torch.Tensor) -> np.ndarray:
        """[views, tokens, width] in the stored format."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._rounds):
            features = torch.cat([tower(some.to(self._device)).patches for some in pixels.split(VIEWS)])
        stored = features.bfloat16().view(torch.uint16) if self._rounds else features.float()
        return stored.cpu().numpy()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"features could not be written to {folder}: {error.strerror}. What was written before is kept; make room, "
            "then resume with --resume"
        ) from None
