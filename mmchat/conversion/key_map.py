"""`KeyMap`: names of weights in a foreign format and here, as data that is read in both directions."""

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TypeVar

from mmchat.errors import UserError

Value = TypeVar("Value")
Pair = tuple[str, str | None]
Rule = tuple[re.Pattern[str], str | None]


class KeyMap:
    """Pairs of patterns (foreign, ours); the first pair that matches a whole key renames it.

    In a pattern `#` stands for a number and `*` for any text. Both patterns of a pair have the same ones in the same
    order. A foreign pattern without a counterpart, `("*.position_ids", None)`, names what is not read: buffers, weights
    that nothing uses. Several foreign patterns may have one counterpart: all are read, the first is written.

    Args:
        *pairs: The pairs, most specific first.

    Examples:
        >>> keys = KeyMap(("vision_tower.*", "towers.0.backbone.*"), ("mm.linear_#.*", "projectors.0.#.*"))
        >>> keys.ours("mm.linear_2.bias"), keys.foreign("towers.0.backbone.pre.weight")
        ('projectors.0.2.bias', 'vision_tower.pre.weight')
    """

    def __init__(self, *pairs: Pair) -> None:
        self.pairs = pairs

    def ours(self, key: str) -> str | None:
        """Our name of a foreign key; None: not read.

        Raises:
            KeyError: No pair matches.
        """
        return _rename(key, self._import_rules)

    def foreign(self, key: str) -> str:
        """The foreign name of a key of ours.

        Raises:
            KeyError: No pair matches.
        """
        name = _rename(key, self._export_rules)
        assert name is not None
        return name

    def import_state(self, state: Mapping[str, Value]) -> dict[str, Value]:
        """Rename foreign keys to ours.

        Keys that no pair matches keep their names, so that a strict load lists them with what else does not fit.

        Args:
            state: Foreign key -> tensor.

        Raises:
            UserError: Two foreign keys have one name here.
        """
        return _rename_all(state, lambda key: self.ours(key) if self.reads(key) else key)

    def export_state(self, state: Mapping[str, Value]) -> dict[str, Value]:
        """Rename our keys to foreign ones.

        Args:
            state: Key here -> tensor.

        Raises:
            KeyError: No pair matches a key, so the format cannot hold this model.
        """
        return _rename_all(state, self.foreign)

    def reads(self, key: str) -> bool:
        """Whether a pair matches this foreign key."""
        return any(pattern.fullmatch(key) for pattern, _ in self._import_rules)

    @cached_property
    def _import_rules(self) -> list[Rule]:
        return [(_compile(foreign), None if ours is None else _template(ours)) for foreign, ours in self.pairs]

    @cached_property
    def _export_rules(self) -> list[Rule]:
        return [(_compile(ours), _template(foreign)) for foreign, ours in self.pairs if ours is not None]


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"))


def _template(pattern: str) -> str:
    return re.sub(r"[#*]", "{}", pattern)


def _rename(key: str, rules: list[Rule]) -> str | None:
    for pattern, template in rules:
        if found := pattern.fullmatch(key):
            return None if template is None else template.format(*found.groups())
    raise KeyError(key)


def _rename_all(state: Mapping[str, Value], rename: Callable[[str], str | None]) -> dict[str, Value]:
    renamed: dict[str, Value] = {}
    for key, value in state.items():
        name = rename(key)
        if name in renamed:
            raise UserError(f"the weights hold {name} under two names, one of which is {key}; remove one of them")
        if name is not None:
            renamed[name] = value
    return renamed
