"""Help for the keys of a config: in groups, wrapped to the terminal's width. What a group repeats is listed by name."""

import shutil
import textwrap
from collections.abc import Collection
from itertools import groupby

from mmchat.settings import Key, describe

KEY_COLUMN = 34
NARROWEST, WIDEST = 60, 120


def settings_help(schema: type) -> str:
    """One section for the keys at the top and one for each group; a union has a part for each kind."""
    return _SettingsHelp(describe(schema)).text()


def table_of_keys(schema: type, names: Collection[str]) -> str:
    """A line for each of these dotted keys, in their order."""
    keys = {".".join(key.path): key for key in describe(schema)}
    table = _SettingsHelp(list(keys.values()))
    return "\n".join(table.line(keys[name]) for name in names)


class _SettingsHelp:
    def __init__(self, keys: list[Key]) -> None:
        self._keys = keys
        self._width = min(WIDEST, max(NARROWEST, shutil.get_terminal_size((WIDEST, 24)).columns))
        self._first_seen: dict[tuple[str, ...], tuple[str, ...]] = {}

    def text(self) -> str:
        alone = [key for key in self._keys if len(key.path) == 1 and not key.is_group]
        sections = ["\n".join(["the run", *map(self.line, alone)])]
        for name, members in groupby((key for key in self._keys if key not in alone), key=lambda key: key.path[0]):
            sections.append(self._section(name, *members))
        return "\n\n".join(sections)

    def _section(self, name: str, group: Key, *members: Key) -> str:
        """Keys of all kinds first, then those of each kind or set of kinds."""
        lines = self._wrapped(f"{name}: {group.meaning}{_brackets(group)}", "", "  ")
        for kinds, those in groupby(sorted(members, key=lambda key: len(key.kinds)), key=lambda key: key.kinds):
            if kinds:
                lines += ["", f"  of kind {', '.join(kinds)}:"]
            lines += self._lines(list(those))
        return "\n".join(lines)

    def _lines(self, keys: list[Key]) -> list[str]:
        """A line for each key, but only one for all that a group has in common with an earlier one."""
        lines: list[str] = []
        repeated: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
        for key in keys:
            holder = key.path[:-1] if not key.path[-1].isupper() else key.path[:-2]
            facts = (*key.path[len(holder) :], key.type, key.default, key.meaning)
            original = self._first_seen.setdefault(facts, holder)
            if any(key.path[: len(place)] == place and key.path[len(place)] in n for (place, _), n in repeated.items()):
                continue  # inside a group that is itself repeated
            if original == holder:
                lines.append(self.line(key))
            else:
                repeated.setdefault((holder, original), []).append(key.path[len(holder)])
        for (holder, original), names in repeated.items():
            text = f"as {'.'.join(original)}.KEY: {', '.join(names)}"
            lines.append(self._two_columns(f"--{'.'.join(holder)}.KEY", text))
        return lines

    def line(self, key: Key) -> str:
        return self._two_columns(f"--{'.'.join(key.path)}", f"{key.meaning}{_brackets(key)}")

    def _two_columns(self, left: str, right: str) -> str:
        left = f"  {left}"
        indent = " " * KEY_COLUMN
        fits = len(left) < KEY_COLUMN - 1
        lines = self._wrapped(right, f"{left:{KEY_COLUMN}}" if fits else indent, indent)
        return "\n".join(lines if fits else [left, *lines])

    def _wrapped(self, text: str, first: str, following: str) -> list[str]:
        return textwrap.wrap(
            text, self._width, initial_indent=first, subsequent_indent=following, break_long_words=False
        )


def _brackets(key: Key) -> str:
    kind = key.type.removesuffix(" or null") if key.default == "null" else key.type
    facts = [fact for fact in ("" if key.is_group else kind, key.default) if fact]
    return f"{' ' if key.meaning else ''}[{'; '.join(facts)}]" if facts else ""
