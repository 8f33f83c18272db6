"""What a job is about: items, and what a worker says about one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmchat.errors import UserError

if TYPE_CHECKING:
    from mmchat.inference.generator import Generator

Line = dict[str, Any]
"""A JSON object, one line of a journal."""


@dataclass(frozen=True)
class Item:
    """One image of a job. Nothing is read before `open`. It travels between processes, so all of it can be pickled."""

    key: Line
    """The fields that identify it in the journal: "path", and "page" for a page; "id" for a question of a task."""
    open: Callable[[], Image.Image]
    """Reads the image, or raises UserError."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What its record says, for prompts."""
    prompt: str = ""
    kept: Line = field(default_factory=dict)
    """Fields that its line repeats."""
    file: str | None = None
    """Its file, if it is a file of its own and not a part of one."""
    stem: str = ""
    """Its path below the folder or table that it was found in, without suffix: what a sidecar is called."""

    @property
    def name(self) -> tuple:
        """The values of `key`."""
        return tuple(self.key.values())


@dataclass(frozen=True)
class Outcome:
    """What became known about an item."""

    answer: Line
    """Fields of its line: those of an answer, or `error`."""
    tokens: int = 0
    """Tokens that were made for it."""

    @property
    def failed(self) -> bool:
        return "error" in self.answer


Task = Callable[["Generator", Item], Outcome]
"""Asks a model about an item and waits. Called in several threads at once. UserError is an outcome like any other."""


def refuse(problem: str) -> Any:
    """The `open` of an item that cannot be opened, with `functools.partial`."""
    raise UserError(problem)


def failure(problem: object) -> Outcome:
    """The outcome of an item that cannot be answered."""
    return Outcome({"error": str(problem)})
