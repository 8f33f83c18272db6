"""Apply a template to a dialogue: turns become typed segments."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple, cast

from mmchat.conversation.messages import Turn
from mmchat.conversation.safe_tokenizer import SafeTokenizer
from mmchat.conversation.segments import Control, Image, Segment, Text, parse_segments, strip_around_images
from mmchat.conversation.special_tokens import drop_marks
from mmchat.conversation.template import Template
from mmchat.conversation.turn_order import Dialogue
from mmchat.errors import UserError


class Literal(NamedTuple):
    """Text that the template itself writes. Control tokens in it are not resolved yet."""

    text: str
    supervised: bool = False


Unresolved = Segment | Literal


def write_segments(
    dialogue: Dialogue, template: Template, safe: SafeTokenizer, system: str | None, add_generation_prompt: bool
) -> list[Segment]:
    """Write a dialogue as segments.

    Args:
        dialogue: The turns. Its own system message takes precedence over `system`.
        template: The template.
        safe: The tokenizer, safe against typed control tokens.
        system: The system message. None uses the template's default.
        add_generation_prompt: End with the assistant's header.

    Raises:
        UserError: The template has no system message, a generation prompt would follow an assistant turn, or the
            tokenizer lacks a token that the template writes.
    """
    for token in template.control:
        safe.require(token)
    turns = dialogue.turns
    if add_generation_prompt and template.alternating and turns and turns[-1].role == "assistant":
        raise UserError("a generation prompt must follow a user turn, but the last turn is the assistant's")
    block = _system_block(dialogue.system if dialogue.system is not None else system, template)
    segments = _resolve(_write(turns, block, template, add_generation_prompt), safe)
    before, after = template.strip_around_images, template.strip_around_images or template.strip_after_images
    return strip_around_images(segments, before, after) if after else segments


def check_system(system: str | None, template: Template) -> None:
    """Refuse a system message that the template cannot write.

    Raises:
        UserError: The template has no system message.
    """
    if system and template.system is None:
        raise UserError(
            f"template {template.name!r} has no place for a system message; leave it out (found {repr(system)[:80]})"
        )


def _system_block(system: str | None, template: Template) -> list[Unresolved]:
    check_system(system, template)
    # The default is the template's own literal. Any other system message is text.
    message = Literal(template.default_system) if system is None else Text(drop_marks(system))
    if not template.system or not message.text:
        return []
    before, after = template.system
    return [Literal(before), message, Literal(after)]


def _write(
    turns: list[Turn], system_block: list[Unresolved], template: Template, add_generation_prompt: bool
) -> Iterator[Unresolved]:
    yield Literal(template.start)
    if not template.system_in_user:
        yield from system_block
    tool = template.tool or ("", "")  # without `tool`, to_dialogue refuses tool messages
    for number, turn in enumerate(turns):
        if turn.role == "user":
            yield Literal(template.user[0] if number == 0 else template.next_user + template.user[0])
            if template.system_in_user and number == 0:
                yield from system_block
            yield from _user_content(turn, template)
            yield Literal(template.user[1])
        elif turn.role == "assistant":
            yield Literal(template.header)
            yield Literal(template.answer[0], turn.train)
            yield Text(drop_marks(turn.text), turn.train)
            yield Literal(template.answer[1], turn.train)
            yield Literal(template.after_answer)
        else:
            first, last = (not 0 <= n < len(turns) or turns[n].role != "tool" for n in (number - 1, number + 1))
            yield Literal(template.tools[0] * first + tool[0])
            yield Text(drop_marks(turn.text))
            yield Literal(tool[1] + template.tools[1] * last)
    if add_generation_prompt:
        yield Literal(template.header)
    else:
        yield Literal(template.end, bool(turns) and turns[-1].train)


def _user_content(turn: Turn, template: Template) -> Iterator[Segment]:
    has_images = None in turn.parts
    keep_text = {"keep": True, "drop": False, "drop_beside_images": not has_images}[template.user_text]
    for part in turn.parts:
        if part is None:
            yield Image()
        elif keep_text:
            yield Text(drop_marks(part))


def _resolve(unresolved: Iterator[Unresolved], safe: SafeTokenizer) -> list[Segment]:
    """Split literals into control tokens and text.

    Adjacent literals are joined first, as in plain tokenization, because two may spell one token together.
    """
    segments: list[Segment] = []
    for is_literal, group in groupby(unresolved, lambda segment: isinstance(segment, Literal)):
        if not is_literal:
            segments += cast(Iterator[Segment], group)
            continue
        literals = tuple(cast(Iterator[Literal], group))
        if literals not in safe.read_literals:  # there are few per template
            safe.read_literals[literals] = _read_literals(literals, safe)
        segments += safe.read_literals[literals]
    return segments


def _read_literals(literals: tuple[Literal, ...], safe: SafeTokenizer) -> list[Segment]:
    text, spans = "", []
    for literal in literals:
        start = len(text)
        text += safe.fill(literal.text)
        if literal.supervised:
            spans.append((start, len(text)))
    return parse_segments(text, safe.pattern, spans, lambda match, supervised: Control(match[0], supervised))
