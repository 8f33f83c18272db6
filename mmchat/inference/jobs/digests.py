"""`DigestSet`: which keys were seen, without a Python object for each."""

import hashlib
import json
from typing import Any

WIDTH = 16
"""Bytes of a digest. Two of 10^9 keys share one with a probability of 10^-21."""
_EMPTY = bytes(WIDTH)
_FULLEST = 0.6
"""Share of used places above which the table doubles."""


class DigestSet:
    """A set of JSON values, kept as BLAKE2b digests in one table with open addressing: 27 to 53 bytes per value."""

    def __init__(self) -> None:
        self._places = 1024
        self._table = bytearray(WIDTH * self._places)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def __contains__(self, value: Any) -> bool:
        digest = _digest(value)
        return self._table[(place := self._place(digest)) : place + WIDTH] == digest

    def add(self, value: Any) -> bool:
        """Add a value. Returns whether it is new."""
        digest = _digest(value)
        place = self._place(digest)
        if self._table[place : place + WIDTH] == digest:
            return False
        self._table[place : place + WIDTH] = digest
        self._used += 1
        if self._used > _FULLEST * self._places:
            self._double()
        return True

    def _place(self, digest: bytes) -> int:
        """Where in the table a digest is or belongs, in bytes."""
        index = int.from_bytes(digest[:8]) % self._places
        while (found := self._table[WIDTH * index : WIDTH * index + WIDTH]) != _EMPTY and found != digest:
            index = (index + 1) % self._places
        return WIDTH * index

    def _double(self) -> None:
        old = self._table
        self._places *= 2
        self._table = bytearray(WIDTH * self._places)
        for start in range(0, len(old), WIDTH):
            digest = bytes(old[start : start + WIDTH])
            if digest != _EMPTY:
                place = self._place(digest)
                self._table[place : place + WIDTH] = digest


def _digest(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=True)
    return hashlib.blake2b(text.encode("ascii"), digest_size=WIDTH).digest()
