"""Keys and words that change what a record means, and are not read: each is refused by its name.

A record is never trained on with less than it holds. Keys that are not listed here, and that no layout reads, are
metadata: they are kept in `Record.extra`, and `mmchat data check` counts them.

The names are those of ms-swift (docs/source_en/Customization/Custom-dataset.md), LLaMA-Factory (data/README.md), TRL
(docs/source/dataset_formats.md), axolotl (docs/dataset-formats) and OpenAI's fine-tuning files.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmchat.errors import UserError

MEDIA_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".wmv", ".flv"}
    | {".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".wma"}
)
"""File name endings of video and audio."""

_MEDIA_KEYS = tuple(
    name
    for kind in ("video", "audio")
    for name in (kind, f"{kind}s", f"{kind}_path", f"{kind}_paths", f"{kind}_url", f"{kind}_file", f"input_{kind}")
)
_MEDIA_PARTS = ("video", "video_url", "input_video", "audio", "audio_url", "input_audio")
_PREFERENCE_KEYS = (
    *("chosen", "rejected", "chosen_response", "rejected_response", "chosen_messages", "rejected_messages"),
    *("rejected_images", "rejected_image", "positive_messages", "negative_messages", "kto_tag"),
    *("preferred", "dispreferred", "preferred_output", "non_preferred_output"),
)
_TOOL_KEYS = ("tools", "functions")
_GROUNDING_KEYS = ("objects", "bbox", "bboxes", "boxes", "ref", "refs")
_GROUNDING_MARKS = re.compile("<bbox>|<ref-object>")
_TURN_CONTENT_KEYS = (
    *("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking"),
    *("image", "images", "image_url", "chosen", "rejected"),
)
"""Keys of a turn that hold what is not in its text."""
_TURN_LOSS_KEYS = ("loss_scale", "loss_mask", "mask", "masked", "train_detail", "training_detail")
_MEDIA_MARK = re.compile(
    r"\A\s*<(?:video|audio)>(?!.*</(?:video|audio)>)"  # at the beginning, and no element of HTML
    r"|\n<(?:video|audio)>\s*\Z"  # or as the last line
    r"|<(video|audio)>[^<>\s]+\.\w{2,4}</\1>",  # Qwen-Audio's: <audio>a.wav</audio>
    re.DOTALL,
)


def refuse_unread_meaning(item: Mapping[str, Any], has_conversation: bool) -> None:
    """Refuse a stored record with a key whose meaning is not read.

    Args:
        item: The stored record.
        has_conversation: Whether it has turns. The `label` of an image without them is its class.

    Raises:
        UserError: Names the key. Its kind is one of the doctor's.
    """
    if key := _first(item, _MEDIA_KEYS):
        raise UserError(f'has "{key}", and only images are read; leave the record out, or give frames as images', MEDIA)
    keys = [*_PREFERENCE_KEYS, *(["label"] if has_conversation and item.get("label") in (0, 1) else [])]
    if key := _first(item, keys):
        problem = (
            f'has "{key}", which makes it preference data (DPO, KTO), and answers are learned as they are here; '
            "keep the preferred answers as conversations without this key"
        )
        raise UserError(problem, "preference_data")
    if key := _first(item, _TOOL_KEYS):
        problem = f'has "{key}", which no template writes; put the definitions into the system message as text'
        raise UserError(problem, "tool_definitions")


def refuse_unread_turn(turn: Mapping[str, Any], number: int) -> None:
    """Refuse a turn with a key whose meaning is not read. Raises UserError, which names the key."""
    if key := _first(turn, _MEDIA_KEYS):
        raise UserError(f'turn {number} has "{key}", and only images are read', MEDIA)
    if key := _first(turn, _TURN_CONTENT_KEYS):
        problem = f'turn {number} has "{key}", which is not read; put what it holds into the text, or remove it'
        raise UserError(problem, "unread_key")
    if key := _first(turn, _TURN_LOSS_KEYS):
        problem = f'turn {number} has "{key}", which is not read; an answer is left out of the loss by "train": false'
        raise UserError(problem, "unread_key")


def refuse_media_part(part: Any, number: int) -> None:
    """Refuse a part of a turn that holds video or audio. Raises UserError."""
    if not isinstance(part, Mapping):
        return
    kind = part.get("type")
    if (isinstance(kind, str) and kind in _MEDIA_PARTS) or (key := _first(part, _MEDIA_KEYS)):
        named = kind if isinstance(kind, str) and kind in _MEDIA_PARTS else key
        raise UserError(f'turn {number} holds a part of "{named}", and only images are read', MEDIA)


def refuse_media_entries(entries: Sequence[Any]) -> None:
    """Refuse an image entry that names a video or audio file. Raises UserError."""
    for entry in entries:
        path = entry.get("path") if isinstance(entry, Mapping) else entry
        if isinstance(path, str) and (path.startswith(("data:video", "data:audio")) or _suffix(path) in MEDIA_SUFFIXES):
            raise UserError(f"image {path!r:.80} is video or audio, and only images are read", MEDIA)


def refuse_unread_marks(item: Mapping[str, Any], user_texts: Iterable[str], texts: Iterable[str]) -> None:
    """Refuse words that stand for what is not read: places of video and audio, and boxes to be filled in.

    Args:
        item: The stored record.
        user_texts: The texts of the user.
        texts: All texts.

    Raises:
        UserError: Names the word and its key.
    """
    if mark := next((found[0] for text in user_texts if (found := _MEDIA_MARK.search(text))), None):
        problem = f"holds {mark.strip()!r:.80}, the place of video or audio, and only images are read"
        raise UserError(problem, MEDIA)
    key = _first(item, _GROUNDING_KEYS)
    if key and (mark := next((found[0] for text in texts if (found := _GROUNDING_MARKS.search(text))), None)):
        problem = f'has "{key}" to be filled in at {mark}, which is not done; write the boxes and names into the text'
        raise UserError(problem, "grounding_objects")


MEDIA = "unsupported_media"
"""Kind of a record with video or audio."""


def _first(item: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """The first of `keys` that holds something. Arrow fills missing keys with None, and lists with empty entries."""
    return next((key for key in keys if key in item and not _is_empty(item[key])), None)


def _is_empty(value: Any) -> bool:
    if isinstance(value, list | tuple | Mapping):
        return all(map(_is_empty, value.values() if isinstance(value, Mapping) else value))
    return value is None or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def _suffix(path: str) -> str:
    name = path.rpartition("/")[2].partition("?")[0]
    return f".{name.rpartition('.')[2].lower()}" if "." in name else ""
