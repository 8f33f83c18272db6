"""Interface of the readers: their input (`ConversionJob`), their output (`Converted`, `Skipped`), and helpers."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmchat.constants import IMAGE_PLACEHOLDER

SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
"""Speaker names of LLaVA's format and of chat messages -> LLaVA's names."""


class Converted(NamedTuple):
    """A record in LLaVA's format, not yet validated. where: `file item number`, for messages."""

    where: str
    record: dict[str, Any]


class Skipped(NamedTuple):
    """An item that is not converted.

    Attributes:
        reason: a short text that is the same for many items.
        detail: what is wrong with this item.
        deselected: left out by an option (another split): counted, but not listed and not an error.
    """

    where: str
    id: str
    reason: str
    detail: str = ""
    deselected: bool = False


class UnusableItem(Exception):  # noqa: N818 - converted to `Skipped`, never leaves a reader
    """An item that cannot be converted; `convert_items` turns it into `Skipped`."""

    def __init__(self, reason: str, detail: Any = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail if isinstance(detail, str) else f"{detail!r:.200}"


@dataclass(frozen=True)
class ConversionJob:
    """Settings of one conversion.

    Attributes:
        max_turns: maximum questions about one image in a record; None: all consecutive ones.
        prompt: replaces the instruction that a format adds; "" adds none.
        advance: called with the number of bytes of `inputs` that were read.
    """

    inputs: list[Path]
    out: Path
    image_root: Path | None = None
    max_turns: int | None = None
    prompt: str | None = None
    split: str = "train"
    image_column: str | None = None
    caption_column: str | None = None
    advance: Callable[[int], None] = lambda n: None

    def image_path(self, *paths: str) -> str:
        """The first of `paths` that exists below the image root, otherwise the first.

        The image root may contain the published image folder, or be that folder.
        """
        return next(filter(self._is_there, paths), paths[0])

    def _is_there(self, path: str) -> bool:
        try:
            return self.image_root is not None and (self.image_root / path).is_file()
        except OSError:  # the name is too long for the file system
            return False


def convert_items(pairs: Iterable[tuple[str, Any]], make: Callable[[str, Any], Any]) -> Iterator[Any]:
    """`make(where, item)` for each of `pairs`, or `Skipped` if it raises `UnusableItem`."""
    for where, item in pairs:
        try:
            yield make(where, item)
        except UnusableItem as problem:
            yield Skipped(where, source_id(item), problem.reason, problem.detail)


def source_id(item: Any) -> str:
    """The id of an item in its source, or ""; for the list of skipped items."""
    keys = ("id", "question_id", "questionId")
    ids = (item.get(key) for key in keys) if isinstance(item, dict) else ()
    return next((str(value) for value in ids if value is not None), "")


def text_field(item: Any, key: str) -> str:
    """The text under `key`, stripped; numbers are converted to text.

    Raises:
        UnusableItem: `item` is not an object, has no such key, or the value is not text or is blank.
    """
    value = item.get(key) if isinstance(item, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnusableItem(f"no `{key}`", item)
    if not str(value).strip():
        raise UnusableItem(f"empty `{key}`", item)
    return str(value).strip()


def plain_text(text: str) -> str:
    """The text, checked.

    Raises:
        UnusableItem: it contains `<image>`, which in a record would stand for an image.
    """
    if IMAGE_PLACEHOLDER in text:
        raise UnusableItem(f'literal "{IMAGE_PLACEHOLDER}" in the text', text[:200])
    return text


def speaker_name(name: Any, turn: Any) -> str:
    """LLaVA's name of a speaker. Raises UnusableItem for an unknown one."""
    if not isinstance(name, str) or name not in SPEAKERS:
        raise UnusableItem(f"the speaker of a turn is none of {', '.join(SPEAKERS)}", turn)
    return SPEAKERS[name]


def make_turns(*exchanges: tuple[str, str]) -> list[dict[str, str]]:
    """LLaVA's `conversations` from (question, answer) pairs."""
    pairs = [({"from": "human", "value": human}, {"from": "gpt", "value": gpt}) for human, gpt in exchanges]
    return [turn for pair in pairs for turn in pair]
