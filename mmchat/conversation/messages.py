"""Two dialects in, one list of turns out; every malformed message is refused here.

Data dialect (LLaVA JSON): `{"from": "human" | "gpt" | "system", "value": str}`, where `<image>` in a human
value is a placeholder. Chat dialect: `{"role": "user" | "assistant" | "system", "content": str | parts}`
with parts `{"type": "image"}` and `{"type": "text", "text": str}`, where text is always text.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.conversation.templates import Template
from mmchat.errors import UserError

_ROLE_OF = {"human": "user", "gpt": "assistant", "system": "system"}
_ROLES = {role: role for role in _ROLE_OF.values()}


class Turn(NamedTuple):
    role: str
    """user or assistant."""
    parts: tuple[str | None, ...]
    """Text, or None where an image stands."""


class Dialogue(NamedTuple):
    system: str | None
    """None: the messages hold no system message."""
    turns: list[Turn]


def read_messages(messages: Sequence[Mapping[str, Any]], template: Template) -> Dialogue:
    """The system message and the turns of `messages`, in the order the template can write.

    Raises:
        UserError: names the message (by number, from 0), what was found and what was expected.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise UserError(f"messages must be a list of messages, found {type(messages).__name__}")
    if not messages:
        raise UserError("messages is empty: a conversation needs at least one turn")
    first = messages[0]
    data_dialect = isinstance(first, Mapping) and "from" in first
    read = _read_data if data_dialect else _read_chat
    turns = [read(message, f"message {number}") for number, message in enumerate(messages)]

    system = None
    if turns[0].role == "system":
        system = "".join(turns.pop(0).parts)
    if data_dialect and template.alternating and turns and turns[0].role == "assistant":
        # As LLaVA and Vary do: an opening answer to no question cannot be learned from.
        turns.pop(0)
    _check_order(turns, template)
    return Dialogue(system, turns)


def merge_text_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Chat messages with neighbouring text parts joined into one.

    Needed before `apply_chat_template(..., sanitize_control_tokens=True)`: transformers marks control tokens
    string by string, so one that is typed across two parts ("<img", "pad>") would pass unmarked.
    """
    merged = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            parts: list[dict[str, Any]] = []
            for part in content:
                if parts and part.get("type") == "text" == parts[-1].get("type"):
                    parts[-1] = {**parts[-1], "text": parts[-1]["text"] + part["text"]}
                else:
                    parts.append(part)
            content = parts
        merged.append({**message, "content": content})
    return merged


def _read_data(message: Mapping[str, Any], where: str) -> Turn:
    if not isinstance(message, Mapping) or "from" not in message or "value" not in message:
        raise UserError(
            f"{where}: expected {{'from': ..., 'value': ...}} like the first message, found {repr(message)[:200]}"
        )
    role = _known(message["from"], _ROLE_OF, "from", where)
    value = message["value"]
    if not isinstance(value, str):
        raise UserError(f"{where}: 'value' must be a string, found {type(value).__name__}")
    if role != "user" or IMAGE_PLACEHOLDER not in value:
        return Turn(role, (value,))
    parts: list[str | None] = []
    for text in value.split(IMAGE_PLACEHOLDER):
        parts += (text, None)
    return Turn(role, tuple(parts[:-1]))


def _read_chat(message: Mapping[str, Any], where: str) -> Turn:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise UserError(
            f"{where}: expected {{'role': ..., 'content': ...}} (or all {{'from': ..., 'value': ...}}), "
            f"found {repr(message)[:200]}"
        )
    role = _known(message["role"], _ROLES, "role", where)
    content = message["content"]
    if isinstance(content, str):
        return Turn(role, (content,))
    if not isinstance(content, Sequence):
        found = type(content).__name__
        raise UserError(f"{where}: 'content' must be a string or a list of parts, found {found}")
    parts = tuple(_read_part(part, f"{where}, part {number}") for number, part in enumerate(content))
    if None in parts and role != "user":
        raise UserError(f"{where}: only a user's message may hold images, this one is the {role}'s")
    return Turn(role, parts)


def _read_part(part: Mapping[str, Any], where: str) -> str | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        return None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise UserError(
        f"{where}: expected {{'type': 'image'}} or {{'type': 'text', 'text': str}}, found {repr(part)[:200]}"
    )


def _known(name: Any, roles: Mapping[str, str], key: str, where: str) -> str:
    if not isinstance(name, str) or name not in roles:
        raise UserError(f"{where}: unknown {key!r} {name!r}, expected one of {', '.join(roles)}")
    return roles[name]


def _check_order(turns: list[Turn], template: Template) -> None:
    for number, turn in enumerate(turns):
        if turn.role == "system":
            raise UserError("a system message may only be the first message")
        if template.alternating and turn.role != ("user", "assistant")[number % 2]:
            expected = "user's" if number % 2 == 0 else "assistant's"
            raise UserError(
                f"turn {number} is the {turn.role}'s where the {expected} is due: template {template.name!r} "
                "needs user and assistant to take turns, the user first"
            )
    if template.one_exchange and (len(turns) > 2 or not turns or None not in turns[0].parts):
        images = turns[0].parts.count(None) if turns else 0
        raise UserError(
            f"template {template.name!r} takes one user turn with at least one image and its answer; "
            f"found {len(turns)} turns, {images} images in the first"
        )
