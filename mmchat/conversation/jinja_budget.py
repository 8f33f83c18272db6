"""What a chat template spends: charges for loops, calls and values, before the work is done."""

import re
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import TemplateRuntimeError
from jinja2.utils import Namespace

BUDGET = 300_000_000
"""What a template may spend, one unit for each byte that it makes: less than three seconds, and 300 MB."""
PER_CHARACTER = 10_000
"""More budget for each character of the messages: a template that appends to one string copies it once per message."""
STEP = 600
"""Charge for a round of a loop or a call, which take up to 4 microseconds."""
ITEM = 64
"""Charge for an item of a list or dict, by the memory that it takes."""
MAX_BITS = 10_000
"""Largest number that a product or power may have, in bits."""
_remaining: ContextVar[int] = ContextVar("remaining budget")


class TemplateCostError(TemplateRuntimeError):
    """The template has spent its budget."""


def set_budget(messages: Any) -> None:
    """Give a template that is about to run on these messages, which are plain values, its budget."""
    _remaining.set(BUDGET + PER_CHARACTER * _characters(messages))


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_characters, inner))


def charge(cost: int) -> None:
    """Raises TemplateCostError if the template in progress has not so much left."""
    left = _remaining.get() - cost
    _remaining.set(left)
    if left < 0:
        raise TemplateCostError("it does not end, or needs too much memory: it has spent its budget of time and memory")


def measure(value: Any) -> None:
    """Charge for reading a value: its text, or all that is in it, which is counted again wherever it stands."""
    if isinstance(value, str | bytes):
        charge(len(value))
    elif isinstance(value, int):
        charge(value.bit_length() // 8)
    elif isinstance(value, dict | Namespace | list | tuple | set):
        inner = value._Namespace__attrs if isinstance(value, Namespace) else value
        charge(ITEM * (len(inner) + 1))
        for item in inner:
            measure(item)
            if isinstance(inner, dict):
                measure(inner[item])


def _numbers(values: Iterable[Any]) -> int:
    """The sum of the integers among values, by which text is padded or repeated."""
    return sum(abs(value) for value in values if isinstance(value, int))


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | Namespace) else 1


def _charge_format(form: Any, values: Sequence[Any], nested: str) -> None:
    """Charge for `form % values` or `form.format(values)`: every width in it, and in the values if it takes them."""
    if isinstance(form, str):
        charge(sum(int(digits[:12]) for digits in re.findall(r"\d+", form)))
        if re.search(nested, form):
            charge(_numbers(values))


def charge_percent(form: Any, values: Any) -> None:
    """Charge for `form % values`."""
    _charge_format(form, values if isinstance(values, tuple) else [values], _PERCENT_STAR)


_PERCENT_STAR, _NESTED_FIELD = r"%[^a-zA-Z%]*\*", r"\{[^{}]*:[^{}]*\{"


def _charge_replace(text: Any, old: Any = "", new: Any = "", *_: Any) -> None:
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        charge(text.count(old) * len(new))


def _charge_join(separator: Any, items: Any) -> None:
    charge(_length(separator) * _length(items))


def _charge_json(value: Any, indent: Any = 0) -> None:
    charge(_numbers([indent]) * _depth(value) * _count(value))


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return 1 + max(map(_depth, inner), default=0)


def _count(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return 1 + sum(map(_count, inner))


def _charge_square(value: Any, *_: Any, **__: Any) -> None:
    charge(_length(value) ** 2)


def _charge_product(value: Any, *arguments: Any, **named: Any) -> None:
    others = (*arguments, *named.values())
    charge(_length(value) * max((_length(one) * max(1, _numbers([one])) for one in others), default=1))


def _charge_padding(value: Any, *arguments: Any, **named: Any) -> None:
    charge(ITEM * _numbers([*arguments, *named.values()]))


GROWING_FILTERS: dict[str, Callable[..., None]] = {
    "batch": _charge_padding,
    "center": _charge_padding,
    "format": lambda form, *values, **named: _charge_format(form, [*values, *named.values()], _PERCENT_STAR),
    "indent": _charge_product,
    "join": lambda items, d="", attribute=None: _charge_join(d, items),
    "pprint": _charge_square,
    "replace": _charge_replace,
    "round": _charge_product,
    "slice": _charge_padding,
    "striptags": _charge_square,
    "sum": _charge_square,
    "tojson": lambda value, ensure_ascii=False, indent=None, *_, **__: _charge_json(value, indent),
    "urlize": _charge_square,
    "wordwrap": _charge_product,
    "xmlattr": _charge_square,
}
"""Filter -> charge for what it makes beyond the size of its arguments, or for more time than they take to read."""
GROWING_METHODS: dict[str, Callable[..., None]] = {
    "center": _charge_padding,
    "expandtabs": lambda text, size=8: charge(_length(text) * _numbers([size])),
    "format": lambda form, *values, **named: _charge_format(form, [*values, *named.values()], _NESTED_FIELD),
    "format_map": lambda form, values: _charge_format(form, list(values.values()), _NESTED_FIELD),
    "join": _charge_join,
    "ljust": _charge_padding,
    "replace": _charge_replace,
    "rfind": _charge_product,
    "rindex": _charge_product,
    "rjust": _charge_padding,
    "rpartition": _charge_product,
    "rsplit": _charge_product,
    "to_bytes": _charge_padding,
    "translate": lambda text, table: charge(_length(text) * max(map(_length, table.values()), default=1)),
    "zfill": _charge_padding,
}
"""Method of a str, bytes or int -> the same."""


def charge_product_of(operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_BITS:
            raise TemplateCostError(f"it computes a number of {bits:,} bits")
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | bytes | list | tuple) and isinstance(times, int):
            charge(len(sequence) * max(times, 0) * (ITEM if isinstance(sequence, list | tuple) else 1))
