"""The stored layouts of a record (see records.py): each becomes messages that `parse_messages` reads.

LLaVA's layout is that of haotian-liu/LLaVA, docs/Finetune_Custom_Data.md. The names of ShareGPT variants are those
that LLaMA-Factory and ms-swift read.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.conversation.messages import TRAIN_MARKS, Dialect
from mmchat.data.image_refs import ImageRef
from mmchat.data.record_meaning import (
    refuse_media_entries,
    refuse_media_part,
    refuse_unread_marks,
    refuse_unread_meaning,
    refuse_unread_turn,
)
from mmchat.errors import UserError

IMAGE_KEYS = ("image", "images", "image_path", "image_url", "filepath", "file_name", "path", "url")
CAPTION_KEYS = ("caption", "text", "title", "label")
CONVERSATION_KEYS = ("conversations", "messages", "texts")

_SPEAKERS = {
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "model", "bot", "function_call"), "gpt"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
    "system": "system",
}
"""Speakers of ShareGPT variants -> LLaVA's names."""
_IMAGE_PARTS = ("image", "image_url")
_SYSTEM_KEYS = ("system", "system_prompt")
_TURN_KEYS = frozenset({"from", "value", "role", "content", "user", "assistant", *TRAIN_MARKS})
"""The keys of a turn that are read. `record_meaning` refuses others that change what it means."""
_IMAGE_IN_TEXT = re.compile(r"<img>([^<>\n]+)</img>")
"""Qwen-VL's first layout (QwenLM/Qwen-VL, README.md, "Data preparation"): `Picture 1: <img>a.jpg</img>\\nWhat?`."""


class Layout(NamedTuple):
    """What a stored record holds, in a layout-independent form."""

    keys: set[str]
    """The keys that were read."""
    messages: list[dict[str, Any]]
    """In one dialect of `conversation.messages`."""
    images: list[Any]
    """What `make_image_ref` takes, in the order of the placeholders."""
    dialect: Dialect
    turn_keys: frozenset[str] = frozenset()
    """The keys of turns that were not read."""


def read_layout(item: Mapping[str, Any]) -> Layout:
    """Read the messages and image entries of a stored record.

    Raises:
        UserError: No known layout, two layouts at once, a value of the wrong type, or a key that changes what the
            record means and is not read.
    """
    layout = _read(item)
    refuse_media_entries(layout.images)
    refuse_unread_marks(item, _texts(layout.messages, {"human", "user"}), _texts(layout.messages))
    return layout


def _read(item: Mapping[str, Any]) -> Layout:
    image_keys = [key for key in IMAGE_KEYS if item.get(key) is not None]
    conversation_keys = [key for key in CONVERSATION_KEYS if item.get(key) is not None]
    refuse_unread_meaning(item, bool(conversation_keys))
    if len(conversation_keys) > 1:
        raise UserError(f"has both {_quoted(conversation_keys)}; expected one of them")
    if conversation_keys:
        image_keys = [key for key in image_keys if key in ("image", "images")]
    if len(image_keys) > 1:
        raise UserError(f"has both {_quoted(image_keys)}; expected one of them")
    images = _image_entries(item[image_keys[0]], image_keys[0]) if image_keys else []
    keys = {*image_keys, *(key for key in ("image", "images") if key in item)}
    if not conversation_keys:
        key, messages = _from_caption(item, len(images))
        return Layout(keys | {key}, messages, images, "chat")
    key = conversation_keys[0]
    keys.add(key)
    turns = _turn_list(item[key], key)
    turn_keys = _check_turn_keys(turns)
    dialect: Dialect = "chat"
    if key == "texts":
        messages = _from_texts(turns, len(images))
    else:
        turns, images = _take_images_in_text(turns, images)
        if key == "messages" or all(isinstance(turn, Mapping) and "role" in turn for turn in turns):
            messages, images = _from_messages(turns, images)
        else:
            dialect = "data"
            messages = [_from_conversation(turn, number) for number, turn in enumerate(turns, 1)]
    for system_key in _SYSTEM_KEYS:
        if item.get(system_key) is not None:
            keys.add(system_key)
            messages = _with_system(messages, item[system_key], system_key, dialect)
    return Layout(keys, messages, images, dialect, turn_keys)


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
            content = message.get("value", message.get("content"))
            yield from [content] if isinstance(content, str) else [part.get("text", "") for part in content]


def _image_entries(value: Any, key: str) -> list[Any]:
    if isinstance(value, list | tuple):
        if all(isinstance(entry, str | bytes | Mapping | ImageRef) for entry in value):
            return list(value)
    elif isinstance(value, str | bytes | Mapping | ImageRef):
        return [value]
    raise UserError(f'"{key}" must be a path or a list of paths, found {value!r:.80}')


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


def _from_conversation(turn: Any, number: int) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str) or "from" not in turn:
        raise UserError(f'turn {number} must be {{"from": ..., "value": text}}, found {turn!r:.80}')
    speaker = _SPEAKERS.get(turn["from"]) if isinstance(turn["from"], str) else None
    if speaker is None:
        problem = f"turn {number} is from {turn['from']!r:.80}; expected one of {', '.join(_SPEAKERS)}"
        raise UserError(problem, kind="role_order")
    return {**turn, "from": speaker}


def _from_messages(turns: list[Any], listed_images: list[Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Chat messages without inline images, and all images: the inline ones in order, or those listed in the record."""
    inline_images: list[Any] = []
    placeholders = not any(_has_image_part(turn) for turn in turns)
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str | list):
            raise UserError(f'turn {number} must be {{"role": ..., "content": text or parts}}, found {turn!r:.80}')
        speaker = _SPEAKERS.get(turn["role"]) if isinstance(turn.get("role"), str) else None
        if speaker is None:
            problem = f"turn {number} has the role {turn.get('role')!r:.80}; expected one of {', '.join(_SPEAKERS)}"
            raise UserError(problem, kind="role_order")
        content = turn["content"]
        if isinstance(content, list):
            content = [_part(part, inline_images, number) for part in content]
        elif placeholders and speaker == "human":
            content = _split_placeholders(content)
        role = {"human": "user", "gpt": "assistant"}.get(speaker, speaker)
        marks = {key: turn[key] for key in TRAIN_MARKS if turn.get(key) is not None}
        messages.append({"role": role, "content": content, **marks})
    if inline_images and listed_images:
        raise UserError("has images both in the messages and in the record; expected one of the two")
    return messages, inline_images or listed_images


def _has_image_part(turn: Any) -> bool:
    content = turn.get("content") if isinstance(turn, Mapping) else None
    return isinstance(content, list) and any(isinstance(p, Mapping) and p.get("type") in _IMAGE_PARTS for p in content)


def _part(part: Any, inline_images: list[Any], number: int) -> dict[str, Any]:
    """A text part unchanged; an image part without its source, which is appended to `inline_images`."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    refuse_media_part(part, number)
    if kind not in _IMAGE_PARTS:
        raise UserError(f"turn {number} holds a part that is neither text nor image: {part!r:.80}")
    source = next((part[key] for key in ("image_url", "image", "url", "path") if part.get(key) is not None), None)
    if isinstance(source, Mapping) and "url" in source:  # OpenAI: {"image_url": {"url": ...}}
        source = source["url"]
    if source is not None:
        inline_images.append(source)
    return {"type": "image"}


def _split_placeholders(text: str) -> list[dict[str, Any]] | str:
    """LLaMA-Factory and ms-swift: `<image>` in plain text stands for an image listed in the record."""
    if IMAGE_PLACEHOLDER not in text:
        return text
    parts: list[dict[str, Any]] = []
    for piece in text.split(IMAGE_PLACEHOLDER):
        parts += [{"type": "text", "text": piece}] * bool(piece) + [{"type": "image"}]
    return parts[:-1]


def _take_images_in_text(turns: list[Any], listed_images: list[Any]) -> tuple[list[Any], list[Any]]:
    """The turns with a placeholder for every image whose path is in the user's text, and all images."""
    taken: list[Any] = []
    rewritten = []
    for number, turn in enumerate(turns, 1):
        key = "value" if isinstance(turn, Mapping) and "value" in turn else "content"
        text = turn.get(key) if isinstance(turn, Mapping) else None
        if isinstance(text, str) and (paths := _IMAGE_IN_TEXT.findall(text)):
            speaker = turn.get("from", turn.get("role"))
            if not isinstance(speaker, str) or _SPEAKERS.get(speaker) != "human":
                raise UserError(f"turn {number} holds <img>{paths[0]:.80}</img>, and only the user's turns hold images")
            taken += paths
            turn = {**turn, key: _IMAGE_IN_TEXT.sub(IMAGE_PLACEHOLDER, text)}
        rewritten.append(turn)
    if taken and listed_images:
        raise UserError("has images both in the text (<img>...</img>) and in the record; expected one of the two")
    return rewritten, taken or listed_images


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


def _from_caption(item: Mapping[str, Any], images: int) -> tuple[str, list[dict[str, Any]]]:
    key = next((key for key in CAPTION_KEYS if isinstance(item.get(key), str)), None)
    if key is None:
        found = ", ".join(map(str, item)) or "nothing"
        raise UserError(f'"conversations" (or messages, texts, caption) is missing, found {found:.200}')
    if images != 1:
        raise UserError(f"a caption needs one image, found {images} (looked for {', '.join(IMAGE_KEYS)})")
    image = {"role": "user", "content": [{"type": "image"}]}
    return key, [image, {"role": "assistant", "content": item[key]}]


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f'"{name}"' for name in names)
