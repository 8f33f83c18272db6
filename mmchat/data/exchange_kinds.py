"""Keep exchanges of some kinds. A record's `kinds` names the kind of each question, as `mmchat eval` reads it."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from mmchat.conversation.messages import Turn
from mmchat.data.config import SourceConfig
from mmchat.data.records import Record
from mmchat.errors import UserError


def kinds_of(record: Record) -> list[str]:
    """The kind of each exchange of a record.

    Raises:
        UserError: It has no `kinds`, or not one for each answer.
    """
    kinds: Any = record.extra.get("kinds")
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise UserError(
            f"{record.where}: the source keeps exchanges by kind, but the record has no `kinds`, a list with the "
            "kind of each question"
        )
    if len(kinds) != len(record.answers):
        raise UserError(f"{record.where}: {len(record.answers)} answers and {len(kinds)} kinds; expected as many")
    return kinds


def keep_kinds(record: Record, only: Collection[str] | None, without: Collection[str] | None) -> Record | None:
    """The record with the exchanges of the kinds in `only` (None: all) that are not in `without`.

    Images of a question that is left out go before the next question that is kept, as if the conversation had begun
    there; after the last one kept they are left out, too.

    Returns:
        None if no exchange is left.

    Raises:
        UserError: As `kinds_of`.
    """
    kept = [(only is None or kind in only) and kind not in (without or ()) for kind in kinds_of(record)]
    if all(kept):
        return record
    turns: list[Turn] = []
    exchange: list[Turn] = []
    carried, images, answers = 0, 0, 0
    for turn in record.turns:
        if turn.role == "system":
            turns.append(turn)
            continue
        exchange.append(turn)
        if turn.role == "assistant":
            count = sum(one.parts.count(None) for one in exchange)
            if kept[answers]:
                turns += [_with_images(exchange[0], carried), *exchange[1:]]
                images, carried = images + carried + count, 0
            else:
                carried += count
            exchange, answers = [], answers + 1
    if not any(kept):
        return None
    return replace(record, turns=tuple(turns), images=record.images[:images])


def _with_images(turn: Turn, count: int) -> Turn:
    """The turn with images before its text, each followed by a line break as the data dialect writes them."""
    if not count:
        return turn
    first, *others = turn.parts
    before: list[str | None] = [part for _ in range(count) for part in (None, "\n")]
    parts = (*before, None, *others) if first is None else (*before[:-1], f"\n{first}", *others)
    return turn._replace(parts=parts)


class KindsOfSource:
    """Which records of a source have an exchange that its keys keep, and whether all kinds that they name occur."""

    def __init__(self, config: SourceConfig) -> None:
        self._only, self._without = config.kinds, config.without_kinds
        self._seen: set[str] = set()

    @property
    def chooses(self) -> bool:
        return bool(self._only or self._without)

    def keeps(self, record: Record) -> bool:
        """Whether an exchange is left. Raises UserError as `kinds_of`."""
        if not self.chooses:
            return True
        self._seen.update(kinds_of(record))
        return keep_kinds(record, self._only, self._without) is not None

    def check(self, source: str) -> None:
        """Call it after all records. Raises UserError for a kind that none of them has."""
        named = [*(self._only or ()), *(self._without or ())]
        if missing := [kind for kind in named if kind not in self._seen]:
            known = ", ".join(sorted(self._seen)) or "none"
            raise UserError(f"{source} has no exchange of kind {missing[0]!r}; its kinds are: {known}")
