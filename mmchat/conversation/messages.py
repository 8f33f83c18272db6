"""Messages in either of two dialects become one list of turns. Malformed messages are refused here.

Data dialect (LLaVA's JSON): `{"from": "human" | "gpt" | "system" | "tool", "value": str}`. `<image>` in a human
value is a placeholder. "observation" and "function_response" are synonyms of "tool".

Chat dialect: `{"role": "user" | "assistant" | "system" | "tool", "content": str | parts}` with the parts
`{"type": "image"}` and `{"type": "text", "text": str}`. Text is always text: `<image>` is no placeholder. Between an
image and the part next to it comes a line break, unless white space is there already: `[image, "What?"]` is the data
dialect's `<image>\nWhat?`.

In both dialects, `"train": false` (or a synonym of TRAIN_MARKS, such as OpenAI's `"weight": 0`) on an assistant message
leaves it unsupervised.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mmchat.constants import IMAGE_BREAK, IMAGE_PLACEHOLDER
from mmchat.conversation.special_tokens import drop_marks
from mmchat.errors import UserError

Dialect = Literal["data", "chat"]

TRAIN_MARKS = ("train", "weight", "loss", "training")
"""Keys of an answer that say whether it is supervised: ours, OpenAI's, ms-swift's and axolotl's."""

_ROLE_OF = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_SPEAKER_OF = {"user": "human", "assistant": "gpt", "system": "system", "tool": "tool"}
_ROLES = {role: role for role in _SPEAKER_OF}


class Turn(NamedTuple):
    """One message, independent of its dialect."""

    role: str
    """system, user, assistant or tool."""
    parts: tuple[str | None, ...]
    """Text, or None for an image. Only a user turn holds images."""
    train: bool = False
    """Whether the text and the end of the turn are supervised: assistant turns, unless marked `"train": false`."""
    unprompted: bool = False
    """An answer that opens a conversation of the data dialect. Alternating templates drop it, as LLaVA does."""

    @property
    def text(self) -> str:
        """The text without the images."""
        return "".join(part for part in self.parts if part is not None)


def parse_messages(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Parse messages into turns, one each. The first message decides the dialect.

    The order of turns is not checked here, because it depends on the template.

    Args:
        messages: Messages of one dialect (see the module's docstring).

    Raises:
        UserError: Names the message (counted from 0), what was found and what was expected.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise UserError(f"messages must be a list of messages, found {type(messages).__name__}")
    if not messages:
        raise UserError("messages is empty: a conversation needs at least one turn")
    is_data = isinstance(messages[0], Mapping) and "from" in messages[0]
    parse = _parse_data if is_data else _parse_chat
    turns = [parse(message, f"message {number}") for number, message in enumerate(messages)]
    opening = 1 if turns[0].role == "system" else 0
    if is_data and opening < len(turns) and turns[opening].role == "assistant":
        turns[opening] = turns[opening]._replace(unprompted=True)
    return turns


def to_messages(turns: Sequence[Turn], dialect: Dialect) -> list[dict[str, Any]]:
    """Messages that `parse_messages` reads as these turns, if they came from this dialect."""
    if dialect == "data":
        return [{"from": _SPEAKER_OF[turn.role], "value": _data_value(turn), **_train_mark(turn)} for turn in turns]
    return [{"role": turn.role, "content": _chat_content(turn), **_train_mark(turn)} for turn in turns]


def merge_text_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join adjacent text parts of chat messages.

    Call this before `apply_chat_template(..., sanitize_control_tokens=True)`: transformers marks control tokens
    string by string, so a token typed across two parts ("<img", "pad>") would not be marked.
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


def _data_value(turn: Turn) -> str:
    return "".join(IMAGE_PLACEHOLDER if part is None else part for part in turn.parts)


def _chat_content(turn: Turn) -> str | list[dict[str, Any]]:
    # A text that spells the placeholder is written as a part, in which text is always text.
    if len(turn.parts) == 1 and turn.parts[0] is not None and IMAGE_PLACEHOLDER not in turn.parts[0]:
        return turn.parts[0]
    return [{"type": "image"} if part is None else {"type": "text", "text": part} for part in turn.parts]


def _train_mark(turn: Turn) -> dict[str, bool]:
    return {"train": False} if turn.role == "assistant" and not turn.train else {}


def _parse_data(message: Mapping[str, Any], where: str) -> Turn:
    if not isinstance(message, Mapping) or "from" not in message or "value" not in message:
        raise UserError(
            f"{where}: expected {{'from': ..., 'value': ...}} like the first message, found {repr(message)[:200]}"
        )
    role = _role(message["from"], _ROLE_OF, "from", where)
    value = message["value"]
    if not isinstance(value, str):
        raise UserError(f"{where}: 'value' must be a string, found {type(value).__name__}")
    train = _is_supervised(message, role, where)
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
    role = _role(message["role"], _ROLES, "role", where)
    if message.get("tool_calls"):
        raise UserError(f"{where}: 'tool_calls' is not written by any template; put the call into 'content' as text")
    train = _is_supervised(message, role, where)
    content = message["content"]
    if isinstance(content, str):
        return Turn(role, (content,), train)
    if not isinstance(content, Sequence):
        found = type(content).__name__
        raise UserError(f"{where}: 'content' must be a string or a list of parts, found {found}")
    parts = tuple(_parse_part(part, f"{where}, part {number}") for number, part in enumerate(content))
    if None in parts and role != "user":
        raise UserError(f"{where}: only a user's message may hold images, this one is the {role}'s")
    return Turn(role, tuple(_with_breaks(parts)), train)


def _with_breaks(parts: Sequence[str | None]) -> Iterator[str | None]:
    """The parts that are not empty, with a line break between an image and its neighbour unless white space is there.

    The saved Jinja does the same (`image_break` in tokenizer_jinja.py).
    """
    before: str | None = " "
    for part in parts:
        text = part if part is None else drop_marks(part)
        if text == "":
            continue
        is_beside_image = before is None or text is None
        if is_beside_image and not (before and before[-1].isspace()) and not (text and text[0].isspace()):
            yield IMAGE_BREAK
        yield part
        before = text


def _parse_part(part: Mapping[str, Any], where: str) -> str | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        return None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise UserError(
        f"{where}: expected {{'type': 'image'}} or {{'type': 'text', 'text': str}}, found {repr(part)[:200]}"
    )


def _is_supervised(message: Mapping[str, Any], role: str, where: str) -> bool:
    """Read `train` and its synonyms. None counts as absent: Arrow fills missing keys with it."""
    marks = {key: message[key] for key in TRAIN_MARKS if message.get(key) is not None}
    for key, value in marks.items():
        if not isinstance(value, bool) and (key == "train" or isinstance(value, str) or value not in (0, 1)):
            expected = "true or false" if key == "train" else "0 or 1"
            raise UserError(f"{where}: {key!r} must be {expected}, found {value!r}")
    if len(set(map(bool, marks.values()))) == 2:
        found = " but ".join(f"{key!r} is {value!r}" for key, value in marks.items())
        raise UserError(f"{where}: {found}; keep one of them")
    if role != "assistant" and any(marks.values()) and not _marks_all_turns(marks):
        raise UserError(f"{where}: only an assistant's message can be trained on, this one is the {role}'s")
    return role == "assistant" and all(marks.values())


def _marks_all_turns(marks: Mapping[str, Any]) -> bool:
    """Whether all marks are of programs that mark every turn, and ignore those of users."""
    return marks.keys() <= {"loss", "training"}


def _role(name: Any, roles: Mapping[str, str], key: str, where: str) -> str:
    if not isinstance(name, str) or name not in roles:
        raise UserError(f"{where}: unknown {key!r} {name!r}, expected one of {', '.join(roles)}")
    return roles[name]
