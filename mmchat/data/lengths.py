"""The length index: tokens, images and views of every sample, for packing, grouping and planning.

No image is decoded. The index takes 24 bytes per sample. It is built once, in parallel, and cached under a hash of
the data and of everything that lengths depend on: tokenizer, template, slots, towers.

If the number of slots depends on image size (tiles, native aspect and others), image headers are read too. Loose image
files are not part of the hash, because checking each would take as long as reading its header: an image replaced by one
of another size keeps its old length in the index, and is trained on as it is.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation import get_template
from mmchat.data import storage
from mmchat.data.config import SourceConfig
from mmchat.data.exchange_kinds import keep_kinds
from mmchat.data.mixture import MixtureSource
from mmchat.data.parallel import chunk_ranges, map_chunks
from mmchat.data.records import ImagePlace, Record, Rejected, prepared
from mmchat.errors import UserError
from mmchat.files import write_bytes
from mmchat.vision.spec import Size

CHUNK = 1_000
FORMAT = 3
"""Version of the index. Increase it when the columns change; older indexes are then rebuilt."""

Measure = Callable[[Record], tuple[int, ...]]
"""Record -> the columns of `LengthIndex`. Raises UserError if the record is unusable."""


@dataclass(frozen=True)
class LengthMeasure:
    """Measures one record as training will see it.

    Attributes:
        processor: The model's processor.
        max_length: As in training; None does not cut.
        template: The template of the source; None is the model's.
        max_turns: The limit of the source; None is no limit.
        image_place: As in the source.
        kinds, without_kinds: As in the source.
    """

    processor: Any
    max_length: int | None = None
    template: str | None = None
    max_turns: int | None = None
    image_place: ImagePlace = "as_written"
    kinds: list[str] | None = None
    without_kinds: list[str] | None = None

    def __call__(self, record: Record) -> tuple[int, ...]:
        """The columns of `LengthIndex`; of several captions, the longest. Raises UserError if it is unusable."""
        if self.kinds or self.without_kinds:
            kept = keep_kinds(record, self.kinds, self.without_kinds)
            if kept is None:
                raise UserError(f"{record.where}: no exchange is of the kinds that the source keeps")
            record = kept
        return tuple(map(max, zip(*map(self._columns, record.variants), strict=True)))

    def _columns(self, record: Record) -> tuple[int, ...]:
        record = prepared(record, self.max_turns, self.image_place)
        layouts = self.processor.layouts(self._sizes(record))
        rendered = self.processor.render(record.turns, layouts, self.max_length, template=self.template)
        # Nothing predicts the first position of a row, so it is no loss term.
        supervised = len(rendered.labels) - 1 - rendered.labels[1:].count(IGNORE_INDEX)
        views, slots = sum(layout.views for layout in layouts), sum(layout.slots for layout in layouts)
        return len(rendered.input_ids), supervised, len(layouts), views, views * self._patches, slots

    def _sizes(self, record: Record) -> list[Size]:
        """Width and height of each image. Reads image headers only if the number of views depends on it."""
        if not self._views_vary:
            return [(1, 1)] * len(record.images)
        return [image.size() for image in record.images]

    @cached_property
    def _views_vary(self) -> bool:
        return self.processor.image_processor.views_vary

    @cached_property
    def _patches(self) -> int:
        return sum(spec.tokens for spec in self.processor.image_processor.specs)

    def key(self) -> str:
        """Equal for measures that give the same numbers."""
        p = self.processor
        tokenizer = (p.tokenizer.backend_tokenizer.to_str(), p.tokenizer.special_tokens_map, p.tokenizer.chat_template)
        model = (p.system, p.slots, p.image_tokens, p.image_processor.towers)
        template = get_template(self.template or p.template)
        of_source = (self.template is None, self.max_length, self.max_turns, self.image_place)
        kinds = [sorted(kinds or ()) for kinds in (self.kinds, self.without_kinds)]
        return repr((tokenizer, model, template, *of_source, *(kinds if any(kinds) else ())))


@dataclass(frozen=True)
class LengthIndex:
    """Lengths of samples, uint32[samples] each. An unusable sample has 0 tokens.

    Attributes:
        tokens: Tokens, slots included.
        supervised: Supervised positions.
        images: Images.
        views: Views of the images that each tower sees.
        patches: Patch features of these views, summed over towers.
        slots: Image slots.
    """

    tokens: np.ndarray
    supervised: np.ndarray
    images: np.ndarray
    views: np.ndarray
    patches: np.ndarray
    slots: np.ndarray

    @property
    def columns(self) -> list[np.ndarray]:
        """The columns in stored order."""
        return [getattr(self, field.name) for field in fields(self)]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def usable(self) -> np.ndarray:
        """int64: numbers of the usable samples."""
        return np.flatnonzero(self.tokens)


COLUMNS = len(fields(LengthIndex))


@dataclass(frozen=True)
class _Work:
    source: Any
    measure: LengthMeasure

    def __call__(self, chunk: Sequence[int]) -> np.ndarray:
        rows = np.zeros((len(chunk), COLUMNS), np.uint32)
        for row, index in zip(rows, chunk, strict=True):
            _measure_into(row, self.measure, self.source[index])
        return rows


def _measure_into(row: np.ndarray, measure: Measure, record: Record | Rejected) -> None:
    """Leave the row zero if the record is unusable; `mmchat data check` reports which and why."""
    if not isinstance(record, Rejected):
        with contextlib.suppress(UserError):
            row[:] = measure(record)


def index_path(source: Any, measure: LengthMeasure) -> Path:
    """Path of the cached index of this data with this measure."""
    key = hashlib.blake2b(f"{FORMAT} {source.digest()} {measure.key()}".encode(), digest_size=16).hexdigest()
    return storage.cache_dir() / "lengths" / f"{key}.npy"


def length_index(source: Any, measure: LengthMeasure, workers: int | None = None) -> LengthIndex:
    """Lengths of all records of a source, from the cache if possible.

    Records that were unusable are measured again: a missing image may exist now.

    Args:
        source: A `Source`.
        measure: How to measure a record.
        workers: Number of processes. 0 works in this process; None decides by the number of records.

    Raises:
        UserError: The source cannot be read, or has no usable record; the message says what is wrong with the first.
    """
    path, work = index_path(source, measure), _Work(source, measure)
    columns = _known(path, len(source))
    if columns is None:
        columns = np.zeros((COLUMNS, len(source)), np.uint32)
        chunks: Sequence[Sequence[int]] = chunk_ranges(len(source), CHUNK)
    else:
        unusable = np.flatnonzero(columns[0] == 0)
        chunks = [unusable[chunk.start : chunk.stop].tolist() for chunk in chunk_ranges(len(unusable), CHUNK)]
    changed = False
    for chunk, rows in map_chunks(work, chunks, f"lengths of {source.name}", workers) if chunks else ():
        columns[:, chunk] = rows.T
        changed |= bool(rows.any())
    if not columns.any() and len(source):
        record = source[0]
        reason = why_unusable(measure, record)
        raise UserError(f"{source.name} has no usable record; the first: {reason}")
    if changed:
        buffer = io.BytesIO()
        np.save(buffer, columns)
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            write_bytes(path, buffer.getvalue())
    return LengthIndex(*columns)


def measured_lengths(source: MixtureSource, measure: Measure) -> LengthIndex:
    """Lengths of the usable records of one source of a mixture, measured in this process and not cached."""
    rows = np.zeros((len(source), COLUMNS), np.int64)
    for row, number in zip(rows, range(len(source)), strict=True):
        _measure_into(row, measure, source.record(number))
    return LengthIndex(*rows.T)


def source_measure(source: MixtureSource, processor: Any, max_length: int | None) -> LengthMeasure:
    """The measure for one source of a mixture."""
    return config_measure(source.config, processor, max_length)


def config_measure(config: SourceConfig, processor: Any, max_length: int | None) -> LengthMeasure:
    """The measure for a source with this config."""
    return LengthMeasure(
        processor,
        max_length,
        config.template,
        config.max_turns,
        config.image_place,
        config.kinds,
        config.without_kinds,
    )


def source_lengths(source: MixtureSource, measure: LengthMeasure) -> LengthIndex:
    """Lengths of the usable records of one source of a mixture. Raises as `length_index`."""
    index = length_index(source.source, measure)
    return LengthIndex(*(column[source.usable] for column in index.columns))


def _known(path: Path, samples: int) -> np.ndarray | None:
    with contextlib.suppress(OSError, ValueError, EOFError):
        known = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if known.shape == (COLUMNS, samples):
            return known
    return None


def why_unusable(measure: Measure, record: Record | Rejected) -> str:
    """Why the record has no length."""
    if isinstance(record, Rejected):
        return record.reason
    try:
        measure(record)
    except UserError as error:
        return str(error)
    return "it has no tokens"
