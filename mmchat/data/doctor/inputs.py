"""The inputs of a check: the sources of a mixture as training reads them, and evaluation sets."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.conversation import get_template
from mmchat.data.clean_index import load_clean_index
from mmchat.data.config import SourceConfig
from mmchat.data.doctor.record_checks import RecordChecker
from mmchat.data.image_refs import ImageRef, make_image_ref
from mmchat.data.record_layouts import image_entries
from mmchat.data.records import Record, Rejected
from mmchat.data.sources import Source, open_source
from mmchat.errors import UserError

DEEPEST = 20
EXCHANGE = [{"from": "human", "value": f"{IMAGE_PLACEHOLDER}\na"}, {"from": "gpt", "value": "b"}]
"""An exchange that every template can write."""
LONGEST_TEXT = 10_000
"""Maximum characters of a text that is copied to the quarantine files; a data URI has millions."""


@dataclass(frozen=True, eq=False)
class CheckedSource:
    """One source and how to check it. `numbers`: the records to check, all or those of its clean index."""

    name: str
    config: SourceConfig
    source: Source
    numbers: Sequence[int] | np.ndarray
    checker: RecordChecker

    def __len__(self) -> int:
        return len(self.numbers)

    def record(self, place: int) -> Record | Rejected:
        return self.source[int(self.numbers[place])]

    def stored(self, place: int) -> tuple[str, str, Any]:
        """`where`, id, and the stored object in a form that JSON can hold."""
        where, item = self.source.table.row(int(self.numbers[place]))
        if isinstance(item, Rejected):
            return item.where, item.id, shortened(item.raw)
        identity = item.get("id") if isinstance(item, dict) else None
        return where, where if identity is None else str(identity)[:LONGEST_TEXT], shortened(item)

    def images(self, place: int) -> list[ImageRef]:
        """The images of a record, as far as they can be found, also of a rejected record."""
        record = self.record(place)
        if isinstance(record, Record):
            return list(record.images)
        images: list[ImageRef] = []
        for entry in self._image_entries(place):
            with contextlib.suppress(UserError):
                images.append(make_image_ref(entry, self.source.image_root, allow_http=False))
        return images

    def image_paths(self, place: int) -> list[str]:
        """The image paths of a record as they are stored, whether there are such files or not."""
        entries = [entry.get("path") if isinstance(entry, dict) else entry for entry in self._image_entries(place)]
        return [entry for entry in entries if isinstance(entry, str) and "://" not in entry and entry[:5] != "data:"]

    def _image_entries(self, place: int) -> list[Any]:
        _, item = self.source.table.row(int(self.numbers[place]))
        with contextlib.suppress(UserError):
            return image_entries(item) if isinstance(item, dict) else []
        return []

    def key(self) -> str:
        """Equal for checks of the same records."""
        chosen = "all" if isinstance(self.numbers, range) else np.asarray(self.numbers).tobytes().hex()
        return f"{self.name} {self.config!r} {self.source.digest()} {chosen}"


def open_checked_source(
    name: str, config: SourceConfig, processor: Any = None, max_length: int | None = None
) -> CheckedSource:
    """Open a source to check.

    Raises:
        UserError: The source or its index cannot be opened or is empty, or its template does not exist or does not fit
            the model's tokenizer, so that no record could be rendered.
    """
    if config.template is not None:
        get_template(config.template)
    if processor is not None:
        processor.render(EXCHANGE, [1], template=config.template)
    source = open_source(config.path, config.image_root, config.allow_http)
    numbers = range(len(source)) if config.index is None else load_clean_index(config.index, source)
    if not len(numbers):
        raise UserError(f"{config.path} holds no record")
    return CheckedSource(name, config, source, numbers, RecordChecker(config, processor, max_length))


def shortened(value: Any, depth: int = 0) -> Any:
    """A stored object in a form that JSON can hold: no bytes, limited text length and depth."""
    if isinstance(value, ImageRef):
        return value.name[:LONGEST_TEXT]
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, str):
        rest = len(value) - LONGEST_TEXT
        return value if rest <= 0 else f"{value[:LONGEST_TEXT]}... ({rest:,} characters more)"
    if isinstance(value, dict | list | tuple) and depth == DEEPEST:
        return "..."
    if isinstance(value, dict):
        return {str(key)[:LONGEST_TEXT]: shortened(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(inner, depth + 1) for inner in value]
    return value if isinstance(value, int | float | None) else str(value)[:LONGEST_TEXT]
