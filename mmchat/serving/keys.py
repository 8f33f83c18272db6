"""API keys: where they are read from, and how a caller is recognised. Keys themselves are never printed."""

import hashlib
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from mmchat.errors import UserError

KEYS_VARIABLE = "MMCHAT_API_KEYS"
"""Environment variable with keys, separated by commas or white space."""
SHORTEST_KEY = 16
"""Characters. A shorter key can be guessed."""


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The keys of a file (one a line; blank lines and lines that start with # do not count) and of `MMCHAT_API_KEYS`.

    Raises:
        UserError: The file cannot be read or holds no key, or a key is short, holds white space or is not ASCII. The
            message says where the key is, and not what it is.
    """
    found = [(f"{KEYS_VARIABLE}, key {number}", key) for number, key in _of_environment()]
    if file is not None:
        of_file = _of_file(file)
        if not of_file:
            raise UserError(f"{file} holds no API key; write one key a line")
        found += of_file
    for place, key in found:
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"the API key at {place} has {len(key)} characters; a key needs at least {SHORTEST_KEY} printable "
                "ASCII characters without spaces. Make one with: openssl rand -hex 24"
            )
    return tuple(dict.fromkeys(key for _, key in found))


def _of_environment() -> list[tuple[int, str]]:
    return list(enumerate(os.environ.get(KEYS_VARIABLE, "").replace(",", " ").split(), 1))


def _of_file(file: Path) -> list[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"API key file {file} cannot be read: {error}") from None
    keys = [(f"{file}:{number}", line.strip()) for number, line in enumerate(lines, 1)]
    return [(place, key) for place, key in keys if key and not key.startswith("#")]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address that a server listens on."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_reach(host: str, keys: Sequence[str]) -> None:
    """Refuse to be open to other machines without keys.

    Raises:
        UserError: `host` is not loopback and there is no key.
    """
    if not keys and not is_loopback(host):
        raise UserError(
            f"--host {host} can be reached from other machines, which needs API keys: give --api-key-file FILE (one "
            f"key a line) or set {KEYS_VARIABLE}, or listen on 127.0.0.1"
        )


class KeyRing:
    """Recognises the keys that callers send.

    Keys are looked up by their SHA-256, so the time of a lookup says nothing about how much of a key was right.

    Args:
        keys: Keys. Without any, every caller is accepted.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._names = {_digest(key.encode()): f"key {number}" for number, key in enumerate(keys, 1)}

    @property
    def needs_key(self) -> bool:
        """Whether a caller without a key is refused."""
        return bool(self._names)

    def caller(self, authorization: bytes | None) -> str | None:
        """The name of a caller by its `Authorization` header: `key 1` for the first key. None: refuse.

        Args:
            authorization: `Bearer KEY`, or None if there is no such header.
        """
        if not self._names:
            return "anyone"
        scheme, _, key = (authorization or b"").partition(b" ")
        return self._names.get(_digest(key.strip())) if scheme.lower() == b"bearer" else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
