"""Mistakes of the user, as opposed to defects of mmchat."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: a path, a config, a record, an image.

    The message is complete by itself: what is wrong, where, what was expected, what was found and what to do. The
    command line prints it without a traceback and exits with status 2. Every other exception is a defect of mmchat and
    keeps its traceback.

    Args:
        kind: the kind of a mistake in the data, for programs (`mmchat.data.doctor` lists the kinds); "" for any other.
    """

    def __init__(self, message: str = "", kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class SharedError(UserError):
    """An error that all ranks of a run raise together; only rank 0 prints it."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a mistyped one is most like; None if none is near, so that no message names a random one."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def counted(count: int, noun: str) -> str:
    """`"1 rank"`, `"2 ranks"`, for nouns with a regular plural."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
