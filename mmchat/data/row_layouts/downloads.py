"""Rows of img2dataset, and the lists of addresses that it downloads.

img2dataset writes the caption, the address and the result of each download next to the image
(img2dataset/downloader.py; its README, "Output format"). LAION's lists call their columns URL and TEXT (laion.ai,
LAION-5B), others Image and Caption.
"""

from collections.abc import Mapping
from typing import Any

from mmchat.data.row_layouts.image_column import IMAGE_KEYS
from mmchat.errors import UserError

NOT_DOWNLOADED = "not_downloaded"
"""Kind of a row whose download failed. It never held an image, so it is left out and counted, and is no error."""

_CAPTIONS = ("caption", "captions", "text", "title", "label")
_LOWERED = frozenset({*IMAGE_KEYS, *_CAPTIONS, "id", "conversations", "messages", "question", "answer"})
_TRACES = frozenset({"key", "error_message", "sha256", "original_width", "exif"})
"""Columns of img2dataset that others hardly have; one of them beside `url` and `status` tells its rows."""


def read_download(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with column names in lower case where that is how they are read, and img2dataset's key as its id.

    Raises:
        UserError: img2dataset did not download the image (kind `NOT_DOWNLOADED`).
    """
    named = {_spelling(key, row): value for key, value in row.items()}
    if not ("url" in named and isinstance(named.get("status"), str) and _TRACES & named.keys()):
        return named
    if named["status"] != "success":
        problem = f"img2dataset did not download it: {named.get('error_message') or named['status']}"
        raise UserError(problem, kind=NOT_DOWNLOADED)
    return named if named.get("id") is not None else {**named, "id": named.get("key")}


def _spelling(key: Any, row: Mapping[str, Any]) -> Any:
    lower = key.lower() if isinstance(key, str) else key
    return lower if lower in _LOWERED and lower not in row else key
