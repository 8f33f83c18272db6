"""How long every sample of a source is, without decoding an image: what packing, grouping and planning read.

Twenty bytes a sample, built once in parallel and kept in the cache under a hash of the data and of everything
that makes lengths: tokenizer, template, slots, towers.

Where slots hang on an image's size (tiles, native aspect) its header is read as well. Loose image files are no part
of the hash, as looking at each would take as long: one that is replaced by another size keeps its old length here, and
is trained on as it is.
"""

import contextlib
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation import get_template
from mmchat.data import storage
from mmchat.data.mixture import Mixture, MixtureSource
from mmchat.data.parallel import chunk_ranges, map_chunks
from mmchat.data.records import Record, Rejected, limit_turns
from mmchat.errors import UserError
from mmchat.files import write_bytes

CHUNK = 1_000
FORMAT = 2
"""Raised when what is counted changes: older indexes are then made anew."""


@dataclass(frozen=True)
class LengthMeasure:
    """Measures one record as training will see it, with the model's own processor.

    template, max_turns: the source's own; None is the model's template, and all turns.
    """

    processor: Any
    max_length: int | None = None
    template: str | None = None
    max_turns: int | None = None

    def __call__(self, record: Record) -> tuple[int, ...]:
        """The columns of `LengthIndex`; UserError where the record cannot be used."""
        if self.max_turns is not None:
            record = limit_turns(record, self.max_turns)
        views = self._views(record)
        rendered = self.processor.render(record.turns, views, self.max_length, template=self.template)
        # The first position of a row predicts nothing, so it is no loss term.
        supervised = len(rendered.labels) - 1 - rendered.labels[1:].count(IGNORE_INDEX)
        images, shown = len(record.images), sum(views)
        return len(rendered.input_ids), supervised, images, shown, shown * self._patches

    def _views(self, record: Record) -> list[int]:
        """Of each image, none of which is looked at where they hang on nothing."""
        if not self._views_vary:
            return [1] * len(record.images)
        return [self.processor.image_processor.views(image.size()) for image in record.images]

    @cached_property
    def _views_vary(self) -> bool:
        return self.processor.image_processor.views_vary

    @cached_property
    def _patches(self) -> int:
        return sum(spec.tokens for spec in self.processor.image_processor.specs)

    def key(self) -> str:
        """Tells whether two measures give the same numbers."""
        p = self.processor
        tokenizer = (p.tokenizer.backend_tokenizer.to_str(), p.tokenizer.special_tokens_map, p.tokenizer.chat_template)
        model = (p.system, p.slots, p.image_tokens, p.image_processor.towers)
        template = get_template(self.template or p.template)
        return repr((tokenizer, model, template, self.template is None, self.max_length, self.max_turns))


@dataclass(frozen=True)
class LengthIndex:
    """uint32[samples] each. A sample that cannot be used has 0 tokens.

    tokens: with slots. views: what a tower sees of the images. patches: features of the views, of all towers.
    """

    tokens: np.ndarray
    supervised: np.ndarray
    images: np.ndarray
    views: np.ndarray
    patches: np.ndarray

    @property
    def columns(self) -> list[np.ndarray]:
        """In the order in which they are kept."""
        return [getattr(self, field.name) for field in fields(self)]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def usable(self) -> np.ndarray:
        """int64: the numbers of the samples that can be used."""
        return np.flatnonzero(self.tokens)


COLUMNS = len(fields(LengthIndex))


@dataclass(frozen=True)
class _Work:
    source: Any
    measure: LengthMeasure

    def __call__(self, chunk: Sequence[int]) -> np.ndarray:
        rows = np.zeros((len(chunk), COLUMNS), np.uint32)
        for row, index in zip(rows, chunk, strict=True):
            record = self.source[index]
            if isinstance(record, Rejected):
                continue
            with contextlib.suppress(UserError):  # `mmchat data check` tells which and why
                row[:] = self.measure(record)
        return rows


def index_path(source: Any, measure: LengthMeasure) -> Path:
    """Where the cache keeps the index of this data, measured like this."""
    key = hashlib.blake2b(f"{FORMAT} {source.digest()} {measure.key()}".encode(), digest_size=16).hexdigest()
    return storage.cache_dir() / "lengths" / f"{key}.npy"


def length_index(source: Any, measure: LengthMeasure, workers: int | None = None) -> LengthIndex:
    """The lengths of all records of a `Source`, from the cache if they are there.

    Those that could not be used are measured again: an image that was missing may be there by now.

    Raises:
        UserError: the source cannot be read, or none of its records can be used; tells why the first cannot.
    """
    path, work = index_path(source, measure), _Work(source, measure)
    columns = _known(path, len(source))
    if columns is None:
        columns = np.zeros((COLUMNS, len(source)), np.uint32)
        chunks: Sequence[Sequence[int]] = chunk_ranges(len(source), CHUNK)
    else:
        unusable = np.flatnonzero(columns[0] == 0)
        chunks = [unusable[part.start : part.stop].tolist() for part in chunk_ranges(len(unusable), CHUNK)]
    changed = False
    for chunk, rows in map_chunks(work, chunks, f"lengths of {source.name}", workers) if chunks else ():
        columns[:, chunk] = rows.T
        changed |= bool(rows.any())
    if not columns.any() and len(source):
        record = source[0]
        reason = why_unusable(measure, record)
        raise UserError(f"no record of {source.name} can be used; the first: {reason}")
    if changed:
        buffer = io.BytesIO()
        np.save(buffer, columns)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            write_bytes(path, buffer.getvalue())
    return LengthIndex(*columns)


def mixture_sizes(mixture: Mixture, processor: Any, max_length: int | None) -> np.ndarray:
    """int64[samples, 2]: tokens and views of every sample of a mixture, by number. Raises as `length_index`."""
    lengths = [source_lengths(part, source_measure(part, processor, max_length)) for part in mixture.sources]
    return np.concatenate([np.stack([one.tokens, one.views], axis=1) for one in lengths]).astype(np.int64)


def source_measure(part: MixtureSource, processor: Any, max_length: int | None) -> LengthMeasure:
    """How the samples of one source of a mixture are measured."""
    return LengthMeasure(processor, max_length, part.config.template, part.config.max_turns)


def source_lengths(part: MixtureSource, measure: LengthMeasure) -> LengthIndex:
    """The lengths of the usable records of one source of a mixture, in their order. Raises as `length_index`."""
    index = length_index(part.source, measure)
    return LengthIndex(*(column[part.usable] for column in index.columns))


def _known(path: Path, samples: int) -> np.ndarray | None:
    with contextlib.suppress(OSError, ValueError, EOFError):
        known = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if known.shape == (COLUMNS, samples):
            return known
    return None


def why_unusable(measure: LengthMeasure, record: Record | Rejected) -> str:
    """Why a record has no length."""
    if isinstance(record, Rejected):
        return record.reason
    try:
        measure(record)
    except UserError as error:
        return str(error)
    return "it has no tokens"
