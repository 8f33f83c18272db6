"""Rows as other projects store them -> rows in one of the layouts that `record_layouts` reads.

A module here is one family of layouts. It recognises its rows by their keys, by a table of rules that names the project
of each, and leaves every other row as it is. Keys without a meaning stay in the row.

    shard_members   WebDataset: columns or members named jpg, txt, cls, json
    downloads       img2dataset and lists of addresses (LAION, DataComp, CC12M)
    exchanges       one question and its answer, in two or more columns: alpaca, TRL, ms-swift, VLMEvalKit, ...
    image_column    which of several columns is the image
    unread          layouts that are known and not read: what to do instead
"""

from collections.abc import Mapping
from typing import Any

from mmchat.data.record_meaning import refuse_unread_meaning
from mmchat.data.row_layouts.downloads import read_download
from mmchat.data.row_layouts.exchanges import is_conversation, read_exchange
from mmchat.data.row_layouts.image_column import IMAGE_KEYS, IMAGES, read_image_column
from mmchat.data.row_layouts.shard_members import read_members
from mmchat.data.row_layouts.unread import refuse_unread
from mmchat.errors import UserError

__all__ = ["IMAGES", "IMAGE_KEYS", "canonical_row", "image_entries", "image_entry"]

CONVERSATION_KEYS = ("conversations", "conversation", "messages", "texts")


def canonical_row(item: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its images as a list under `IMAGES`, and its text in a layout of `record_layouts`.

    Raises:
        UserError: Two layouts at once, a known layout that is not read, or a value of the wrong type.
    """
    row = read_download(read_members(item))
    given = [key for key in CONVERSATION_KEYS if row.get(key) is not None]
    refuse_unread_meaning(row, bool(given) or is_conversation(row))
    if len(given) > 1:
        raise UserError(f'has both "{given[0]}" and "{given[1]}"; expected one of them')
    if given:
        return read_image_column(row, row[given[0]])
    row = read_image_column(row)
    read = read_exchange(row)
    if read == row:
        refuse_unread(row, bool(row[IMAGES]))
    return read


def image_entry(item: Mapping[str, Any]) -> Any:
    """The image of a row that has one, whatever its text, as `make_image_ref` takes it.

    Raises:
        UserError: It has none or several, or as in `canonical_row`.
    """
    entries = image_entries(item)
    if not entries:
        raise UserError(f"has no image; looked for {', '.join(IMAGE_KEYS)}, found {', '.join(map(str, item)):.200}")
    if len(entries) > 1:
        raise UserError(f"has {len(entries)} images, expected one")
    return entries[0]


def image_entries(item: Mapping[str, Any]) -> list[Any]:
    """All images of a row, as `image_entry`."""
    return read_image_column(read_download(read_members(item)))[IMAGES]
