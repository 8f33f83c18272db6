"""Records: one image-and-conversation sample, whatever layout it was stored in. No torch here.

    conversations   LLaVA's JSON and ShareGPT's kin: turns {"from", "value"}, `<image>` where an image stands
    messages        OpenAI and Hugging Face: {"role", "content"}, content a text or parts of text and images
    texts           the_cauldron and nanoVLM: exchanges {"user", "assistant"} behind the images
    caption         one image and its caption, as in CSV, TSV and WebDataset; a class is a caption as well (label)

LLaVA's layout is that of haotian-liu/LLaVA, docs/Finetune_Custom_Data.md. ShareGPT's names are those that
LLaMA-Factory and ms-swift read.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.conversation.messages import Turn, parse_messages
from mmchat.data.image_refs import ImageRef, make_image_ref
from mmchat.errors import UserError
from mmchat.files import write_text

IMAGE_KEYS = ("image", "images", "image_path", "image_url", "filepath", "file_name", "path", "url")
CAPTION_KEYS = ("caption", "text", "title", "label")

# ShareGPT's kin, in LLaVA's words.
_SPEAKERS = {
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "model", "bot", "function_call"), "gpt"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
    "system": "system",
}
_IMAGE_PARTS = ("image", "image_url")
_TURN_MARKS = ("train", "weight")


@dataclass(frozen=True)
class Record:
    """One sample.

    messages: a dialect that `conversation.render` reads. images: in the order of their slots.
    where: `file:record`, for messages to people. extra: keys of the stored record that mean nothing here.
    """

    id: str
    images: tuple[ImageRef, ...]
    messages: list[dict[str, Any]]
    where: str
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def turns(self) -> list[Turn]:
        return parse_messages(self.messages)


@dataclass(frozen=True)
class Rejected:
    """A record that cannot be used, and why. kind: as in `UserError`. raw: what could not be decoded at all."""

    where: str
    id: str
    reason: str
    kind: str = field(default="", compare=False)
    raw: str = field(default="", compare=False, repr=False)


def read_record(item: Any, where: str, image_root: str | Path, allow_http: bool = False) -> Record | Rejected:
    """As `parse_record`, with the mistake as a value."""
    try:
        return parse_record(item, where, image_root, allow_http)
    except UserError as error:
        identity = str(item.get("id", "")) if isinstance(item, Mapping) else ""
        return Rejected(where, identity, str(error).removeprefix(f"{where}: "), error.kind)


def parse_record(item: Any, where: str, image_root: str | Path, allow_http: bool = False) -> Record:
    """Validate one decoded object of any layout, without decoding an image.

    Checked are keys and types, speakers, at least one answer, one place per image, and that image files exist
    below `image_root`.

    Raises:
        UserError: beginning with `where`, says what was expected and what was found.
    """

    def fail(problem: str, kind: str = "") -> NoReturn:
        raise UserError(f"{where}: {problem}", kind)

    if not isinstance(item, Mapping):
        fail(f"expected an object with an image and a conversation, found {type(item).__name__}")
    try:
        used, messages, entries = _read_layout(item)
        turns = parse_messages(messages)
        slots = sum(turn.parts.count(None) for turn in turns)
        if slots != len(entries):
            fail(f"{slots} {IMAGE_PLACEHOLDER} in the human turns but {len(entries)} images", "slot_mismatch")
        for text in (part for turn in turns for part in turn.parts if part and not part.isascii()):
            check_encodable(text)
        if not any(turn.role == "assistant" for turn in turns):
            fail("has no gpt turn, so there is nothing to learn", "nothing_to_learn")
        images = tuple(make_image_ref(entry, str(image_root), allow_http) for entry in entries)
    except UserError as error:
        if str(error).startswith(f"{where}: "):
            raise
        fail(str(error), error.kind)
    extra = {key: value for key, value in item.items() if key not in {*used, "id"}}
    identity = item.get("id")
    return Record(str(where if identity is None else identity), images, messages, where, extra)


def check_encodable(text: str) -> None:
    """UserError where a text holds half a character (a lone surrogate), which JSON can spell and no tokenizer reads."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"the text holds U+{ord(text[error.start]):04X} alone, half a character, at {error.start + 1}"
        raise UserError(problem, kind="lone_surrogate") from None


def limit_turns(record: Record, exchanges: int) -> Record:
    """The record up to its `exchanges`-th answer, with the images that are left."""
    answers, images = 0, 0
    for number, turn in enumerate(record.turns):
        images += turn.parts.count(None)
        answers += turn.role == "assistant"
        if answers == exchanges:
            messages = record.messages[: number + 1]
            return replace(record, messages=messages, images=record.images[:images])
    return record


def _read_layout(item: Mapping[str, Any]) -> tuple[set[str], list[dict[str, Any]], list[Any]]:
    """The keys that were read, the messages, and what the images' entries say."""
    image_keys = [key for key in IMAGE_KEYS if item.get(key) is not None]
    conversation_keys = [key for key in ("conversations", "messages", "texts") if item.get(key) is not None]
    if len(conversation_keys) > 1:
        raise UserError(f"has both {_quoted(conversation_keys)}; expected one of them")
    if conversation_keys:
        image_keys = [key for key in image_keys if key in ("image", "images")]
    if len(image_keys) > 1:
        raise UserError(f"has both {_quoted(image_keys)}; expected one of them")
    entries = _entries(item[image_keys[0]], image_keys[0]) if image_keys else []
    used = {*image_keys, *(key for key in ("image", "images") if key in item)}
    if not conversation_keys:
        key, messages = _caption(item, len(entries))
        return used | {key}, messages, entries
    key = conversation_keys[0]
    try:
        turns = json.loads(item[key]) if isinstance(item[key], str) else item[key]
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f'"{key}" is a text that is no JSON: {error}', kind="invalid_json") from None
    if not isinstance(turns, list) or not turns:
        raise UserError(f'"{key}" must be a non-empty list of turns, found {turns!r:.80}')
    system = item.get("system") if key == "conversations" and isinstance(item.get("system"), str) else None
    if key == "texts":
        messages = _from_texts(turns, len(entries))
    elif key == "messages" or all(isinstance(turn, Mapping) and "role" in turn for turn in turns):
        messages, entries = _from_messages(turns, entries)
    else:
        messages = [_from_conversation(turn, number) for number, turn in enumerate(turns, 1)]
    if system and messages[0].get("from") != "system":
        messages = [{"from": "system", "value": system}, *messages]
    return used | {key} | ({"system"} if system is not None else set()), messages, entries


def _entries(value: Any, key: str) -> list[Any]:
    if isinstance(value, list | tuple):
        if all(isinstance(entry, str | bytes | Mapping | ImageRef) for entry in value):
            return list(value)
    elif isinstance(value, str | bytes | Mapping | ImageRef):
        return [value]
    raise UserError(f'"{key}" must be a path or a list of paths, found {value!r:.80}')


def _from_conversation(turn: Any, number: int) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str) or "from" not in turn:
        raise UserError(f'turn {number} must be {{"from": ..., "value": text}}, found {turn!r:.80}')
    speaker = _SPEAKERS.get(turn["from"]) if isinstance(turn["from"], str) else None
    if speaker is None:
        problem = f"turn {number} is from {turn['from']!r:.80}; expected one of {', '.join(_SPEAKERS)}"
        raise UserError(problem, kind="role_order")
    return {"from": speaker, "value": turn["value"], **_marks(turn)}


def _from_messages(turns: list[Any], entries: list[Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Chat messages without their inline images, and all images: these in their order, or the record's list."""
    inline: list[Any] = []
    placeholders = bool(entries) and not any(_has_image_part(turn) for turn in turns)
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str | list):
            raise UserError(f'turn {number} must be {{"role": ..., "content": text or parts}}, found {turn!r:.80}')
        role = _SPEAKERS.get(turn["role"]) if isinstance(turn.get("role"), str) else None
        if role is None:
            problem = f"turn {number} has the role {turn.get('role')!r:.80}; expected one of {', '.join(_SPEAKERS)}"
            raise UserError(problem, kind="role_order")
        content = turn["content"]
        if isinstance(content, list):
            content = [_part(part, inline, number) for part in content]
        elif placeholders and role == "human":
            content = _parts_of_text(content)
        role = {"human": "user", "gpt": "assistant"}.get(role, role)
        messages.append({"role": role, "content": content, **_marks(turn)})
    if inline and entries:
        raise UserError("has images both inside the messages and beside them; expected one of the two")
    return messages, inline or entries


def _has_image_part(turn: Any) -> bool:
    content = turn.get("content") if isinstance(turn, Mapping) else None
    return isinstance(content, list) and any(isinstance(p, Mapping) and p.get("type") in _IMAGE_PARTS for p in content)


def _part(part: Any, inline: list[Any], number: int) -> dict[str, Any]:
    """A text part as it is; an image part without its source, which goes to `inline`."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind not in _IMAGE_PARTS:
        raise UserError(f"turn {number} holds a part that is neither text nor image: {part!r:.80}")
    source = next((part[key] for key in ("image_url", "image", "url", "path") if part.get(key) is not None), None)
    if isinstance(source, Mapping) and "url" in source:  # OpenAI: {"image_url": {"url": ...}}
        source = source["url"]
    if source is not None:
        inline.append(source)
    return {"type": "image"}


def _parts_of_text(text: str) -> list[dict[str, Any]] | str:
    """LLaMA-Factory and ms-swift: plain texts with `<image>` for the images listed beside the messages."""
    if IMAGE_PLACEHOLDER not in text:
        return text
    parts: list[dict[str, Any]] = []
    for piece in text.split(IMAGE_PLACEHOLDER):
        parts += [{"type": "text", "text": piece}] * bool(piece) + [{"type": "image"}]
    return parts[:-1]


def _from_texts(turns: list[Any], images: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("user", "assistant")):
            raise UserError(f'exchange {number} must be {{"user": text, "assistant": text}}, found {turn!r:.80}')
        refs = [{"type": "image"}, {"type": "text", "text": "\n"}] * (images if number == 1 else 0)
        messages.append({"role": "user", "content": [*refs, {"type": "text", "text": turn["user"]}]})
        messages.append({"role": "assistant", "content": turn["assistant"]})
    return messages


def _caption(item: Mapping[str, Any], images: int) -> tuple[str, list[dict[str, Any]]]:
    key = next((key for key in CAPTION_KEYS if isinstance(item.get(key), str)), None)
    if key is None:
        found = ", ".join(map(str, item)) or "nothing"
        raise UserError(f'"conversations" (or messages, texts, caption) is missing, found {found:.200}')
    if images != 1:
        raise UserError(f"a caption needs one image, found {images} (looked for {', '.join(IMAGE_KEYS)})")
    image = {"role": "user", "content": [{"type": "image"}]}
    return key, [image, {"role": "assistant", "content": item[key]}]


def _marks(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {key: turn[key] for key in _TURN_MARKS if turn.get(key) is not None}


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f'"{name}"' for name in names)


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write LLaVA records, one a line, as a JSON array (`.json`) or as JSONL (`.jsonl`)."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    text = "\n".join(lines) if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
    write_text(path, text + "\n")


def stored_form(record: Record) -> dict[str, Any]:
    """The record as an object that `parse_record` reads back, without its images."""
    key = "conversations" if "from" in record.messages[0] else "messages"
    return {"id": record.id, key: record.messages, **record.extra}
