"""The stored layouts of a record (see records.py): each becomes messages that `parse_messages` reads.

LLaVA's layout is that of haotian-liu/LLaVA, docs/Finetune_Custom_Data.md. The names of ShareGPT variants are those
that LLaMA-Factory and ms-swift read. `row_layouts` brings other rows into one of these layouts first.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.conversation.messages import TRAIN_MARKS, Dialect
from mmchat.data.image_refs import ImageInShard
from mmchat.data.record_meaning import refuse_media_entries, refuse_unread_marks, refuse_unread_turn
from mmchat.data.row_layouts import CONVERSATION_KEYS, IMAGE_KEYS, IMAGES, canonical_row, image_entries, image_entry
from mmchat.data.row_layouts.message_parts import part_type, read_part
from mmchat.data.row_layouts.shard_members import read_members
from mmchat.data.row_layouts.turns import spelled_turns
from mmchat.errors import UserError

__all__ = ["IMAGE_KEYS", "Layout", "image_entries", "image_entry", "read_layout", "read_members"]

CAPTION_KEYS = ("caption", "captions", "text", "txt", "title", "label")

_SYSTEM_KEYS = ("system", "system_prompt")
_TURN_KEYS = frozenset({"from", "value", "role", "content", "user", "assistant", *TRAIN_MARKS})
"""The keys of a turn that are read. `record_meaning` refuses others that change what it means."""
_IMAGE_IN_TEXT = re.compile(r"<img>([^<>\n]+)</img>")
"""Qwen-VL's first layout (QwenLM/Qwen-VL, README.md, "Data preparation"): `Picture 1: <img>a.jpg</img>\\nWhat?`."""


class Layout(NamedTuple):
    """What a stored record holds, in a layout-independent form."""

    messages: list[dict[str, Any]]
    """In one dialect of `conversation.messages`."""
    images: list[Any]
    """What `make_image_ref` takes, in the order of the placeholders."""
    dialect: Dialect
    extra: dict[str, Any]
    """Keys that were not read, with their values."""
    turn_keys: frozenset[str] = frozenset()
    """The keys of turns that were not read."""
    captions: tuple[str, ...] = ()
    """All captions of an image that has several; the messages hold the first."""


def read_layout(item: Mapping[str, Any]) -> Layout:
    """Read the messages and image entries of a stored record.

    Raises:
        UserError: No known layout, two layouts at once, a value of the wrong type, or a key that changes what the
            record means and is not read.
    """
    row = canonical_row(item)
    layout = _read(dict(row), found=item)
    refuse_media_entries(layout.images)
    refuse_unread_marks(row, _texts(layout.messages, {"human", "user"}), _texts(layout.messages))
    return layout


def _read(row: dict[str, Any], found: Iterable[Any]) -> Layout:
    images = row.pop(IMAGES)
    key = next((key for key in CONVERSATION_KEYS if row.get(key) is not None), None)
    if key is None:
        key, captions = _captions(row, found)
        rest = {name: value for name, value in row.items() if name != key}
        several = captions if len(captions) > 1 else ()
        return Layout(_from_caption(captions[0], len(images)), images, "chat", rest, captions=several)
    turns = _turn_list(row.pop(key), key)
    turn_keys = _check_turn_keys(turns)
    dialect: Dialect = "chat"
    if key == "texts":
        messages = _from_texts(turns, len(images))
    else:
        messages, dialect = spelled_turns(turns)
        messages, images = _take_images_in_text(messages, images)
        if dialect == "chat":
            messages, images = _from_messages(messages, images)
    for system_key in _SYSTEM_KEYS:
        if row.get(system_key) is not None:
            messages = _with_system(messages, row.pop(system_key), system_key, dialect)
    return Layout(messages, images, dialect, row, turn_keys)


def _check_turn_keys(turns: list[Any]) -> frozenset[str]:
    """Refuse turns that hold more than is read. Returns the keys that do not matter."""
    unread: set[str] = set()
    for number, turn in enumerate(turns, 1):
        if isinstance(turn, Mapping):
            refuse_unread_turn(turn, number)
            unread |= {key for key in turn if key not in _TURN_KEYS and turn[key] is not None}
    return frozenset(unread)


def _texts(messages: list[dict[str, Any]], speakers: set[str] | None = None) -> Iterator[str]:
    """All texts of messages of either dialect, or those of some speakers."""
    for message in messages:
        if speakers is None or message.get("from", message.get("role")) in speakers:
            content = message["value"] if "value" in message else message["content"]
            yield from [content] if isinstance(content, str) else [part.get("text", "") for part in content]


def _turn_list(value: Any, key: str) -> list[Any]:
    try:
        turns = json.loads(value) if isinstance(value, str) else value
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f'"{key}" is a string but not JSON: {error}', kind="invalid_json") from None
    if not isinstance(turns, list) or not turns:
        raise UserError(f'"{key}" must be a non-empty list of turns, found {turns!r:.80}')
    return turns


def _with_system(messages: list[dict[str, Any]], system: Any, key: str, dialect: Dialect) -> list[dict[str, Any]]:
    """The record's system key as the first message, unless the messages have their own (as in LLaMA-Factory)."""
    if not isinstance(system, str):
        raise UserError(f'"{key}" must be a text, found {system!r:.80}')
    if not system or "system" in (messages[0].get("from"), messages[0].get("role")):
        return messages
    message = {"from": "system", "value": system} if dialect == "data" else {"role": "system", "content": system}
    return [message, *messages]


def _from_messages(turns: list[dict[str, Any]], listed: list[Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Chat messages without inline images, and all images: the inline ones in order, or those listed in the record."""
    inline: list[Any] = []
    placeholders = not any(_has_image_part(turn) for turn in turns)
    messages = []
    for number, turn in enumerate(turns, 1):
        content = turn["content"]
        if isinstance(content, list):
            content = [read_part(part, inline, number) for part in content]
        elif placeholders and turn["role"] == "user":
            content = _split_placeholders(content)
        marks = {key: turn[key] for key in TRAIN_MARKS if turn.get(key) is not None}
        messages.append({"role": turn["role"], "content": content, **marks})
    if inline and listed and not _are_names(inline, listed):
        raise UserError("has images both in the messages and in the record; expected one of the two")
    return messages, listed or inline


def _are_names(inline: list[Any], listed: list[Any]) -> bool:
    """Whether the messages of a shard's record name the images that the shard holds."""
    stored = all(isinstance(image, ImageInShard) for image in listed)
    return stored and len(inline) == len(listed) and all(isinstance(name, str) for name in inline)


def _has_image_part(turn: Mapping[str, Any]) -> bool:
    return isinstance(turn["content"], list) and any(part_type(part) == "image" for part in turn["content"])


def _split_placeholders(text: str) -> list[dict[str, Any]] | str:
    """LLaMA-Factory and ms-swift: `<image>` in plain text stands for an image listed in the record."""
    if IMAGE_PLACEHOLDER not in text:
        return text
    parts: list[dict[str, Any]] = []
    for piece in text.split(IMAGE_PLACEHOLDER):
        parts += [{"type": "text", "text": piece}] * bool(piece) + [{"type": "image"}]
    return parts[:-1]


def _take_images_in_text(turns: list[dict[str, Any]], listed: list[Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """The turns with a placeholder for every image whose path is in the user's text, and all images."""
    taken: list[Any] = []
    rewritten = []
    for number, turn in enumerate(turns, 1):
        key = "value" if "value" in turn else "content"
        if isinstance(turn[key], str) and (paths := _IMAGE_IN_TEXT.findall(turn[key])):
            if turn.get("from", turn.get("role")) not in ("human", "user"):
                raise UserError(f"turn {number} holds <img>{paths[0]:.80}</img>, and only the user's turns hold images")
            taken += paths
            turn = {**turn, key: _IMAGE_IN_TEXT.sub(IMAGE_PLACEHOLDER, turn[key])}
        rewritten.append(turn)
    if taken and listed:
        raise UserError("has images both in the text (<img>...</img>) and in the record; expected one of the two")
    return rewritten, taken or listed


def _from_texts(turns: list[Any], images: int) -> list[dict[str, Any]]:
    """the_cauldron's exchanges. Images are before the first question, unless as many `<image>` mark their places."""
    messages: list[dict[str, Any]] = []
    marked = any(isinstance(turn, Mapping) and IMAGE_PLACEHOLDER in str(turn.get("user")) for turn in turns)
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("user", "assistant")):
            raise UserError(f'exchange {number} must be {{"user": text, "assistant": text}}, found {turn!r:.80}')
        image_parts = [{"type": "image"}] * (images if number == 1 and not marked else 0)
        content = _split_placeholders(turn["user"])
        text_parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        messages.append({"role": "user", "content": [*image_parts, *text_parts]})
        messages.append({"role": "assistant", "content": turn["assistant"]})
    return messages


def _captions(row: Mapping[str, Any], found: Iterable[Any]) -> tuple[str, tuple[str, ...]]:
    """The key of the captions, and all of them."""
    key = next((key for key in CAPTION_KEYS if _is_caption(row.get(key), key)), None)
    if key is None:
        names = ", ".join(map(str, found)) or "nothing"
        raise UserError(f'"conversations" (or messages, texts, caption) is missing, found {names:.200}')
    captions = row[key] if isinstance(row[key], list) else [row[key]]
    if len(captions) > 1 and not all(caption.strip() for caption in captions):
        raise UserError(f'"{key}" holds an empty text among {len(captions)}', "empty_answers")
    return key, tuple(map(str, captions))


def _from_caption(caption: str, images: int) -> list[dict[str, Any]]:
    if images != 1:
        raise UserError(f"a caption needs one image, found {images} (looked for {', '.join(IMAGE_KEYS)})")
    return [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": caption}]


def _is_caption(value: Any, key: str) -> bool:
    """Whether it is a text, several texts, or a label's number."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(text, str) for text in value)
    return isinstance(value, str) or (key == "label" and isinstance(value, int) and not isinstance(value, bool))
