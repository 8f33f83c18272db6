"""What readers are told, and what they yield."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmchat.constants import IMAGE_PLACEHOLDER

SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
"""LLaVA's words for the speakers of a conversation, and the chat's."""


class Converted(NamedTuple):
    """A record in LLaVA's layout, not yet validated. where: `file item number`, for messages."""

    where: str
    record: dict[str, Any]


class Skipped(NamedTuple):
    """An item that became no record.

    reason: a few words that many items share. detail: what is wrong with this one.
    unwanted: the user's own choice (another split), so counted but neither listed nor an error.
    """

    where: str
    id: str
    reason: str
    detail: str = ""
    unwanted: bool = False


class UnusableItem(Exception):  # noqa: N818 - a value on its way to `Skipped`, not an error that leaves a reader
    """Why an item becomes no record; `attempt` turns it into `Skipped`."""

    def __init__(self, reason: str, detail: Any = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail if isinstance(detail, str) else f"{detail!r:.200}"


@dataclass(frozen=True)
class Job:
    """One conversion.

    max_turns: questions on one image in a record; None is all that follow each other.
    prompt: replaces the instruction that a kind adds; "" adds none.
    advance: is told how many bytes of `inputs` were read.
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

    def place(self, *paths: str) -> str:
        """The first of `paths` that is below the image root, else simply the first.

        People keep images in the folder they were published in, or make that folder the root.
        """
        return next(filter(self._is_there, paths), paths[0])

    def _is_there(self, path: str) -> bool:
        try:
            return self.image_root is not None and (self.image_root / path).is_file()
        except OSError:  # a name longer than the file system takes
            return False


def attempt(pairs: Iterable[tuple[str, Any]], make: Callable[[str, Any], Any]) -> Iterator[Any]:
    """`make(where, item)` for each of `pairs`, or `Skipped` where it raises `UnusableItem`."""
    for where, item in pairs:
        try:
            yield make(where, item)
        except UnusableItem as problem:
            yield Skipped(where, identity(item), problem.reason, problem.detail)


def identity(item: Any) -> str:
    """What the source calls an item, for the list of those left out."""
    known = ("id", "question_id", "questionId")
    given = (item.get(key) for key in known) if isinstance(item, dict) else ()
    return next((str(value) for value in given if value is not None), "")


def text_of(item: Any, key: str) -> str:
    """The words under `key`, without surrounding white space; numbers are written out.

    Raises:
        UnusableItem: not an object, no such key, no text, or nothing but white space.
    """
    value = item.get(key) if isinstance(item, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnusableItem(f"no `{key}`", item)
    if not str(value).strip():
        raise UnusableItem(f"empty `{key}`", item)
    return str(value).strip()


def plain(text: str) -> str:
    """Text that is meant as words.

    Raises:
        UnusableItem: it holds `<image>`, which in a record would stand for an image.
    """
    if IMAGE_PLACEHOLDER in text:
        raise UnusableItem(f'literal "{IMAGE_PLACEHOLDER}" in the text', text[:200])
    return text


def speaker(name: Any, turn: Any) -> str:
    """Raises UnusableItem for one that LLaVA's layout does not know."""
    if not isinstance(name, str) or name not in SPEAKERS:
        raise UnusableItem(f"a turn from none of {', '.join(SPEAKERS)}", turn)
    return SPEAKERS[name]


def turns(*exchanges: tuple[str, str]) -> list[dict[str, str]]:
    """LLaVA's `conversations` from (question, answer) pairs."""
    pairs = [({"from": "human", "value": human}, {"from": "gpt", "value": gpt}) for human, gpt in exchanges]
    return [turn for pair in pairs for turn in pair]
