"""Which column of a row holds its images.

A row often says more about an image than where it is: the address that it came from, the name that it had. The stored
image wins, then a path, then an address. What does not win stays in the row.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.data.image_refs import ImageRef, is_address, is_encoded
from mmchat.errors import UserError

IMAGES = "images"
"""The key of the images in a canonical row."""

NAMED = (
    *("image", "images"),
    *("image_path", "image_paths", "image_file", "img_path", "img"),
    *("image_url", "image_urls", "image_base64", "image_base64_str"),
)
"""Columns that are called after an image. LLaVA, Hugging Face, ms-swift and LLaMA-Factory have image or images, Qwen's
and MiniCPM's scripts image_path, M3IT image_base64_str."""
PLACES = ("filepath", "file_name", "path", "url")
"""Columns that may mean something else: open_clip's CSV has filepath, Hugging Face's imagefolder file_name, img2dataset
url. Beside a conversation they do: ShareGPT has the address of a chat there."""
IMAGE_KEYS = (*NAMED, *PLACES)


def read_image_column(row: Mapping[str, Any], conversation: Any = None) -> dict[str, Any]:
    """The row with a list of its images under `IMAGES`, in place of the column that holds them.

    Args:
        row: The row.
        conversation: Its turns, if it has any. Beside them `PLACES` count only if nothing else holds the images that
            the text marks.

    Raises:
        UserError: Several columns hold different images, or a value is no image.
    """
    found = _filled(row, NAMED)
    if conversation is None or (not found and IMAGE_PLACEHOLDER in str(conversation)):
        found |= _filled(row, PLACES)
    chosen = _choose(found)
    read = {chosen, IMAGES, *(key for key in NAMED if key not in found)}
    return {**{key: value for key, value in row.items() if key not in read}, IMAGES: found[chosen] if chosen else []}


def _filled(row: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, list[Any]]:
    return {key: entries for key in keys if (entries := _entries(row.get(key), key))}


def _choose(found: dict[str, list[Any]]) -> str | None:
    for counts in (is_encoded, lambda entry: not is_address(entry), lambda entry: True):
        keys = [key for key, entries in found.items() if all(map(counts, entries))]
        if keys and all(found[key] == found[keys[0]] for key in keys):
            return keys[0]
        if keys:
            raise UserError(f"has both {_quoted(keys)}; expected one of them")
    return None


def _entries(value: Any, key: str) -> list[Any]:
    """The images of a column; none if it is empty.

    Raises:
        UserError: It holds something else, or an empty entry between images.
    """
    values = list(value) if isinstance(value, list | tuple) else _listed(value)
    filled = [entry for entry in values if not _is_empty(entry)]
    if not all(isinstance(entry, str | bytes | Mapping | ImageRef) for entry in filled):
        raise UserError(f'"{key}" must be a path or a list of paths, found {value!r:.80}')
    if filled and len(filled) < len(values):
        raise UserError(f'"{key}" has {len(values)} entries, {len(values) - len(filled)} of them empty')
    return filled


def _listed(value: Any) -> list[Any]:
    """A value of a table as a list. VLMEvalKit's TSV writes several images as a list in one cell (vlmeval/smp/misc.py,
    toliststr)."""
    if isinstance(value, str) and value.startswith("[") and value.rstrip().endswith("]"):
        try:
            values = json.loads(value if '"' in value else value.replace("'", '"'))
        except (ValueError, RecursionError):
            return [value]
        return values if isinstance(values, list) else [value]
    return [value]


def _is_empty(entry: Any) -> bool:
    """Whether a value stands for no image: null, an empty text, pandas' NaN, Arrow's null struct."""
    if isinstance(entry, Mapping):
        return entry.keys() <= {"bytes", "path"} and not any(entry.values())
    return entry is None or entry == "" or (isinstance(entry, float) and math.isnan(entry))


def _quoted(names: list[str]) -> str:
    return " and ".join(f'"{name}"' for name in names)
