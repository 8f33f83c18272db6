"""Which prompts begin alike: text tokens are compared by id, image slots by the image's content."""

import hashlib
import os
from itertools import count

import numpy as np

from mmchat.inference.engine.request import Prompt

_SECRET = os.urandom(16)
"""Key of the hashes, so that nobody can make two images that are taken for one."""
_unknown = count(1)


def prompt_keys(prompt: Prompt, image_token_id: int | None) -> np.ndarray:
    """A key for every token. Equal keys up to a token mean equal keys and values in the cache up to there.

    Args:
        prompt: The prompt.
        image_token_id: The id of image slots.

    Returns:
        int64[L]: the id of a text token; a negative number for a slot, which depends on its image and its place there.
    """
    keys = np.array(prompt.input_ids, dtype=np.int64)
    if prompt.embeddings is not None:
        return _slot_keys(None, len(keys))
    if not prompt.images:
        return keys
    slots = np.flatnonzero(keys == image_token_id)
    contents: list[tuple[str | None, int]] = [*prompt.image_keys]
    if sum(number for _, number in contents) != len(slots):
        contents = [(None, len(slots))]
    keys[slots] = np.concatenate([_slot_keys(content, number) for content, number in contents])
    return keys


def common_length(one: np.ndarray, other: np.ndarray) -> int:
    """Number of equal keys at the beginning."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def content_key(content: bytes, *details: object) -> str:
    """A key of an image's content and of what else decides its features."""
    digest = hashlib.blake2b(repr(details).encode(), digest_size=16)
    digest.update(content)
    return digest.hexdigest()


def _slot_keys(content: str | None, number: int) -> np.ndarray:
    """Keys of an image's slots; of content that is not known, keys that no other has."""
    text = f"unknown {next(_unknown)}" if content is None else f"image {content}"
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=_SECRET).digest()
    # Neighbouring numbers: two images would have to be as close as their slots to be confused.
    return -1 - (int.from_bytes(digest, "big") % 2**62 + np.arange(number, dtype=np.int64))
