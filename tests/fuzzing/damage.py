"""Ways in which a file is damaged, or made hostile, by a seeded generator."""

import json
import random
from typing import Any

NUMBERS = (0, -1, 1, 28.5, "32", 10**9, -(10**9), 10**30, 10**5000, 2**31, 2**63, 1e308, float("nan"), True)
OTHERS = (None, [], {}, "", "x" * 10_000, [0], {"a": 1}, [[[[]]]], "\ud800", "../../etc/passwd", "\0", "(a+)+$")
DIGITS = (b"0", b"-1", b"99999999999", b"28.5", b"1e999", b"1" * 5000)


def damaged_bytes(data: bytes, draw: random.Random) -> bytes:
    """The data with one to four pieces changed, cut off, removed, repeated or replaced."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        data = draw.choice(_CHANGES)(data, draw)
    return data


def _flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 3, 20)) if changed else 0):
        changed[_place(changed, draw)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _remove(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + data[at + draw.choice((1, 4, 64)) :]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    at, size = _place(data, draw), draw.choice((1, 8, 200))
    return data[: at + size] + data[at : at + size] * draw.choice((1, 3, 50)) + data[at + size :]


def _overwrite(data: bytes, draw: random.Random) -> bytes:
    at, size = _place(data, draw), draw.choice((1, 2, 4, 8))
    value = draw.choice((b"\0", b"\xff", b"\x7f", bytes([draw.randrange(256)]))) * size
    return data[:at] + value + data[at + size :]


def _insert_number(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + draw.choice(DIGITS) + data[at + draw.choice((0, 1)) :]


_CHANGES = (_flip, _cut, _remove, _repeat, _overwrite, _insert_number)


def _place(data: bytes | bytearray, draw: random.Random) -> int:
    """Any byte, but as often one of the header as one of the rest."""
    return draw.randrange(max(1, min(len(data), draw.choice((64, len(data))))))


def damaged_values(values: Any, draw: random.Random) -> Any:
    """JSON values with one to three of them replaced by impossible ones, removed or moved."""
    if draw.random() < 0.08:
        return draw.choice((*OTHERS, *NUMBERS))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        place = draw.choice(list(_places(values)) or [None])
        if place is None:
            return draw.choice(OTHERS)
        container, key = place
        how = draw.random()
        if how < 0.15:
            del container[key]
        elif how < 0.25 and isinstance(container, dict):
            container[key + "x"] = container.pop(key)
        elif isinstance(container[key], int | float) and how < 0.85:
            container[key] = draw.choice(NUMBERS)
        else:
            container[key] = draw.choice((*OTHERS, *NUMBERS))
    return values


def _places(values: Any, depth: int = 0):
    """Every container and key in JSON values."""
    items = list(values.items()) if isinstance(values, dict) else list(enumerate(values))[:50]
    for key, value in items:
        yield values, key
        if isinstance(value, dict | list) and depth < 6:
            yield from _places(value, depth + 1)


def damaged_json(data: bytes, draw: random.Random) -> bytes:
    """A JSON file with impossible values, or damaged as any other file, or nested too deeply."""
    how = draw.random()
    if how < 0.25:
        return damaged_bytes(data, draw)
    if how < 0.28:
        return draw.choice((b"[" * 100_000, b'{"a":' * 20_000, b"", b"\xff\xfe", b"null", b"[]", b"1" * 5000, b"NaN"))
    return as_json(damaged_values(json.loads(data), draw))


def as_json(values: Any) -> bytes:
    """JSON text, also of numbers of more digits than Python writes."""
    long, mark = 10**5000, 123456789123456789
    text = json.dumps(_replaced(values, long, mark))
    return text.replace(str(mark), "1" + "0" * 5000).encode("utf-8", "surrogatepass")


def _replaced(values: Any, old: Any, new: Any) -> Any:
    if isinstance(values, dict):
        return {key: _replaced(value, old, new) for key, value in values.items()}
    if isinstance(values, list):
        return [_replaced(value, old, new) for value in values]
    return new if isinstance(values, int) and values == old else values
