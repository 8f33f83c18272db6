"""The mixture as a map-style dataset. Samples are encoded where they are needed: in the data workers."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table

from mmchat.data.config import DataConfig, SourceConfig
from mmchat.data.feature_store import ImageFeatures
from mmchat.data.mixture import EpochPlan, epoch_counts
from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Record, Rejected, limit_turns
from mmchat.data.sources import Source, open_source
from mmchat.errors import UserError
from mmchat.files import write_bytes
from mmchat.progress import progress_bar
from mmchat.vision.spec import Grid

DRAFT_OF_SQUARE = 2
"""A draft is so many times as large as what it is shrunk to, which hides what libjpeg's coarser decoding does."""
MANY = 20_000
"""Looking through more records than this shows a progress bar."""


@dataclass
class Encoded:
    """What an objective makes of a record.

    input_ids, labels: equally long lists; labels is None for an objective that has none.
    pixels: per image, per tower, uint8[views, 3, H, W]. cut: tokens that `max_length` took away.
    features: instead of pixels, per image, per tower [views, tokens, width], what the tower makes of them; None where
        the towers run.
    grids: of each image, where its views are the patches of one of native aspect, else None.
    """

    input_ids: list[int]
    labels: list[int] | None
    pixels: list[list[np.ndarray]]
    cut: int = 0
    features: list[list[np.ndarray]] | None = None
    grids: list[Grid] | None = None

    @property
    def seen(self) -> list[list[np.ndarray]]:
        """Pixels, or features: per image, per tower, so many views."""
        return self.pixels if self.features is None else self.features

    @property
    def images(self) -> int:
        return len(self.seen)

    @property
    def views(self) -> int:
        return sum(len(per_tower[0]) for per_tower in self.seen)


@dataclass
class Sample:
    """An encoded record and which it is; `index` is its number in the mixture."""

    index: int
    id: str
    encoded: Encoded


Encode = Callable[..., Encoded]
"""(record, its images, the template of its source, if it has one of its own); and where features are read, these, as
`Encoded` has them, while there are no images."""


Augment = Callable[[list[Image.Image], int, int | None], list[Image.Image] | list[list[Image.Image]]]
"""(images of a record, its number, the step, None where it is held out) -> what is encoded in their place, for all
towers or, of each, for one tower after another; all that is drawn at random is a function of these."""


@dataclass(frozen=True)
class Part:
    """One source of a mixture and its usable records, int64[n]."""

    name: str
    source: Source
    usable: np.ndarray
    config: SourceConfig

    def __len__(self) -> int:
        return len(self.usable)

    def record(self, number: int) -> Record | Rejected:
        record = self.source[int(self.usable[number])]
        if self.config.max_turns is None or isinstance(record, Rejected):
            return record
        return limit_turns(record, self.config.max_turns)


class Mixture:
    """All samples of a run by number; `plan` says which of them form an epoch."""

    def __init__(self, parts: list[Part], epoch_samples: int | None = None) -> None:
        self.parts = parts
        sizes = [len(part) for part in parts]
        configs = [part.config for part in parts]
        repeats, weights = [c.repeat for c in configs], [c.weight for c in configs]
        self.plan = EpochPlan(tuple(sizes), epoch_counts(sizes, repeats, weights, epoch_samples))
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def find(self, number: int) -> tuple[Part, Record | Rejected]:
        at = int(np.searchsorted(self._ends, number, side="right"))
        part = self.parts[at]
        return part, part.record(number - int(self._ends[at]) + len(part))

    def table(self) -> Table:
        """What one epoch holds of each source, exactly."""
        table = Table(title="one epoch", title_justify="left")
        table.add_column("source")
        for column in ("usable", "per epoch", "share", "times each"):
            table.add_column(column, justify="right")
        table.add_column("template")
        for part, count in zip(self.parts, self.plan.counts, strict=True):
            shares = (f"{100 * count / self.plan.samples:.1f} %", f"{count / len(part):.2f}")
            table.add_row(part.name, f"{len(part):,}", f"{count:,}", *shares, part.config.template or "the model's")
        return table


class MixtureDataset:
    """Sample number -> `Sample`, or `Rejected` where the record turns out unusable.

    Nothing takes a rejected sample's place; the batch is one smaller and the loop is told.

    square: side in pixels of the largest square that a tower sees; sources with `draft` are decoded for it.
    features: where those of the images are read; images are not decoded then, and `encode` gets none.
    augment: what becomes of images before `encode` sees them; `dataset[number, step]` says in which step,
        `dataset[number]` that it is held out.
    """

    def __init__(
        self,
        mixture: Mixture,
        encode: Encode,
        square: int,
        features: ImageFeatures | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.mixture, self.encode, self.square, self.features = mixture, encode, square, features
        self.augment = augment

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, drawn: int | tuple[int, int]) -> Sample | Rejected:
        number, step = drawn if isinstance(drawn, tuple) else (drawn, None)
        part, record = self.mixture.find(number)
        if isinstance(record, Rejected):
            return record
        try:
            if self.features is None:
                draft = DRAFT_OF_SQUARE * self.square if part.config.draft else None
                images = [image.open(draft) for image in record.images]
                if self.augment is not None:
                    images = self.augment(images, number, step)
                encoded = self.encode(record, images, part.config.template)
            else:
                features = [self.features.of(image) for image in record.images]
                encoded = self.encode(record, [], part.config.template, features)
        except UserError as error:
            return Rejected(record.where, record.id, str(error), error.kind)
        return Sample(number, record.id, encoded)


def open_mixture(config: DataConfig, quarantine: Quarantine, show_progress: bool = True) -> Mixture:
    """Open every source and look through its records; those that cannot be used go where the policy says.

    Raises:
        UserError: a source has no usable record, or one is not usable and the policy is "stop".
    """
    parts = []
    for name, settings in config.by_name().items():
        source = open_source(settings.path, settings.image_root, settings.allow_http)
        usable = _usable(source, settings, quarantine, show_progress)
        if not len(usable):
            raise UserError(
                f"{settings.path} holds no usable record (image root {source.image_root}); see {quarantine.path}"
            )
        parts.append(Part(name, source, usable, settings))
    return Mixture(parts, config.epoch_samples)


def save_clean_index(path: Path, source: Source, keep: np.ndarray) -> None:
    """Which records of a source are sound, int64[n], with a hash of the data that this is true of."""
    buffer = io.BytesIO()
    np.savez(buffer, keep=keep, digest=np.frombuffer(source.digest().encode(), np.uint8))
    write_bytes(path, buffer.getvalue())


def load_clean_index(path: Path, source: Source) -> np.ndarray:
    """Raises UserError: it is missing, is no index, or was made of other data."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            keep, digest = stored["keep"], stored["digest"].tobytes().decode()
    except FileNotFoundError:
        raise UserError(f"index {path} does not exist; make it with `mmchat data check {source.name}`") from None
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"index {path} is none of `mmchat data check`: {error}") from None
    if digest != source.digest():
        raise UserError(f"index {path} was made of other data than {source.name} holds now; check it again")
    return keep


def _usable(source: Source, settings: SourceConfig, quarantine: Quarantine, show_progress: bool) -> np.ndarray:
    if settings.index is not None:
        return load_clean_index(settings.index, source)[: settings.max_samples]
    usable = []
    with progress_bar(f"reading {source.name}", len(source), enabled=show_progress and len(source) > MANY) as bar:
        for index in range(len(source)):
            record = source[index]
            if isinstance(record, Rejected):
                quarantine.add(record)
            else:
                usable.append(index)
            bar.advance()
            if len(usable) == settings.max_samples:
                break
    return np.array(usable, np.int64)
