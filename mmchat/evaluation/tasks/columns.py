"""Values of a row by the column's name in a layout."""

import ast
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from mmchat.errors import UserError

LONGEST_LIST = 1 << 20
"""Characters of a list that is written as text in a cell."""
_PLACEHOLDER = re.compile(r"\{(\w+)(?::0(\d+)d?)?\}")


def value_at(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column; None if it is missing or stands for nothing.

    Args:
        row: The row.
        column: Its name. `a.b` is b within a, or the list of b within each of a list; a number is a place in a list.
    """
    value: Any = row
    for part in column.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        elif isinstance(value, list):
            value = [entry.get(part) for entry in value if isinstance(entry, Mapping)]
        else:
            return None
    return None if is_nothing(value) else value


def is_nothing(value: Any) -> bool:
    """Whether a cell is empty: also pandas' NaN, and its text, which lmms-lab's parquet files have."""
    return value is None or value in ("", "nan") or (isinstance(value, float) and math.isnan(value))


def has_placeholders(text: str) -> bool:
    return _PLACEHOLDER.search(text) is not None


def columns_of(text: str) -> list[str]:
    """Columns that a layout's value needs: those in braces, or itself."""
    return [match[1] for match in _PLACEHOLDER.finditer(text)] or [text.split(".")[0]]


def filled(row: Mapping[str, Any], text: str) -> str | None:
    """A text with `{column}` or `{column:012d}`; None if a column is empty."""
    missing = [name for name in columns_of(text) if is_nothing(row.get(name))]
    if missing:
        return None
    return _PLACEHOLDER.sub(lambda found: str(row[found[1]]).zfill(int(found[2] or 0)), text)


def text_at(row: Mapping[str, Any], column: str) -> str | None:
    """A column, or a text with columns, as text."""
    if has_placeholders(column):
        return filled(row, column)
    value = value_at(row, column)
    return None if value is None else as_text(value)


def as_text(value: Any) -> str:
    """A value as text: 3.0, to which pandas turns 3, as 3."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else str(value)


def texts_at(row: Mapping[str, Any], column: str) -> list[str]:
    """A column with a text or a list of texts, which may be written as JSON or Python in a cell.

    Raises:
        UserError: It holds something else.
    """
    value = value_at(row, column)
    if isinstance(value, str) and value.startswith("[") and value.rstrip().endswith("]"):
        value = _list_in_text(value)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(entry, str | int | float | bool) for entry in values):
        raise UserError(f"column {column!r} must hold texts, found {value!r:.80}")
    return [as_text(entry) for entry in values if not is_nothing(entry)]


def _list_in_text(text: str) -> Any:
    """VLMEvalKit's TSV files hold lists as Python writes them."""
    if len(text) > LONGEST_LIST:
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    return text
