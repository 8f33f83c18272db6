"""Two dialects in, one list of turns out; every malformed message is refused here.

Data dialect (LLaVA JSON): `{"from": "human" | "gpt" | "system" | "tool", "value": str}`, where `<image>` in a
human value is a placeholder; "observation" and "function_response" are other names of "tool".
Chat dialect: `{"role": "user" | "assistant" | "system" | "tool", "content": str | parts}` with parts
`{"type": "image"}` and `{"type": "text", "text": str}`, where text is always text.
In both, `"train": false` (or OpenAI's `"weight": 0`) on an assistant's message keeps its words unsupervised.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.errors import UserError

_ROLE_OF = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_ROLES = {role: role for role in _ROLE_OF.values()}


class Turn(NamedTuple):
    """One message, whatever its dialect."""

    role: str
    """system, user, assistant or tool."""
    parts: tuple[str | None, ...]
    """Text, or None where an image stands (only in a user's turn)."""
    train: bool = False
    """The words and their end are to be learned: an assistant's turn that does not say `"train": false`."""

    @property
    def text(self) -> str:
        """The words without the images."""
        return "".join(part for part in self.parts if part is not None)


def parse_messages(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """One turn for each message; their order is not looked at, which is the template's concern.

    Raises:
        UserError: names the message (by number, from 0), what was found and what was expected.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise UserError(f"messages must be a list of messages, found {type(messages).__name__}")
    if not messages:
        raise UserError("messages is empty: a conversation needs at least one turn")
    parse = _parse_data if is_data_dialect(messages) else _parse_chat
    return [parse(message, f"message {number}") for number, message in enumerate(messages)]


def is_data_dialect(messages: Sequence[Mapping[str, Any]]) -> bool:
    """The first message says in which dialect all of them are."""
    return isinstance(messages[0], Mapping) and "from" in messages[0]


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


def _parse_data(message: Mapping[str, Any], where: str) -> Turn:
    if not isinstance(message, Mapping) or "from" not in message or "value" not in message:
        raise UserError(
            f"{where}: expected {{'from': ..., 'value': ...}} like the first message, found {repr(message)[:200]}"
        )
    role = _known(message["from"], _ROLE_OF, "from", where)
    value = message["value"]
    if not isinstance(value, str):
        raise UserError(f"{where}: 'value' must be a string, found {type(value).__name__}")
    train = _is_trained(message, role, where)
    if role != "user" or IMAGE_PLACEHOLDER not in value:
        return Turn(role, (value,), train)
    parts: list[str | None] = []
    for text in value.split(IMAGE_PLACEHOLDER):
        parts += (text, None)
    return Turn(role, tuple(parts[:-1]), train)


def _parse_chat(message: Mapping[str, Any], where: str) -> Turn:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise UserError(
            f"{where}: expected {{'role': ..., 'content': ...}} (or all {{'from': ..., 'value': ...}}), "
            f"found {repr(message)[:200]}"
        )
    role = _known(message["role"], _ROLES, "role", where)
    if message.get("tool_calls"):
        raise UserError(f"{where}: 'tool_calls' is not written by any template; put the call into 'content' as text")
    train = _is_trained(message, role, where)
    content = message["content"]
    if isinstance(content, str):
        return Turn(role, (content,), train)
    if not isinstance(content, Sequence):
        found = type(content).__name__
        raise UserError(f"{where}: 'content' must be a string or a list of parts, found {found}")
    parts = tuple(_parse_part(part, f"{where}, part {number}") for number, part in enumerate(content))
    if None in parts and role != "user":
        raise UserError(f"{where}: only a user's message may hold images, this one is the {role}'s")
    return Turn(role, parts, train)


def _parse_part(part: Mapping[str, Any], where: str) -> str | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        return None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise UserError(
        f"{where}: expected {{'type': 'image'}} or {{'type': 'text', 'text': str}}, found {repr(part)[:200]}"
    )


def _is_trained(message: Mapping[str, Any], role: str, where: str) -> bool:
    """What `train` and its synonym `weight` say. None is as if absent: Arrow writes it where others have the key."""
    train, weight = message.get("train"), message.get("weight")
    if train is not None and not isinstance(train, bool):
        raise UserError(f"{where}: 'train' must be true or false, found {train!r}")
    if weight is not None and weight not in (0, 1):
        raise UserError(f"{where}: 'weight' must be 0 or 1, found {weight!r}")
    said = {bool(value) for value in (train, weight) if value is not None}
    if len(said) == 2:
        raise UserError(f"{where}: 'train' is {train!r} but 'weight' is {weight!r}; keep one of them")
    if role != "assistant" and True in said:
        raise UserError(f"{where}: only an assistant's message can be trained on, this one is the {role}'s")
    return role == "assistant" and False not in said


def _known(name: Any, roles: Mapping[str, str], key: str, where: str) -> str:
    if not isinstance(name, str) or name not in roles:
        raise UserError(f"{where}: unknown {key!r} {name!r}, expected one of {', '.join(roles)}")
    return roles[name]
