"""A conversation as typed segments: text that is never a control token, control tokens, images.

Whoever writes a segment decides its type, so nothing a user types can become anything but text.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from mmchat.conversation.messages import Dialogue, Turn
from mmchat.conversation.templates import Template
from mmchat.errors import UserError

BOS, EOS = "{bos}", "{eos}"

# Unicode White_Space, which is what the tokenizers library strips; Python's own str.strip takes more.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"


@dataclass(frozen=True)
class SlotTokens:
    """The tokens an image becomes: `start` once, `pad` once per patch feature, `end` once."""

    pad: str
    start: str | None = None
    end: str | None = None

    @property
    def group(self) -> str:
        """One image as a chat template writes it, before it is expanded."""
        return (self.start or "") + self.pad + (self.end or "")


DEFAULT_SLOTS = SlotTokens(pad="<imgpad>", start="<img>", end="</img>")


class Text(NamedTuple):
    text: str
    supervised: bool = False


class Control(NamedTuple):
    token: str
    """The token's content, or BOS or EOS."""
    supervised: bool = False


class Image(NamedTuple):
    pass


Segment = Text | Control | Image


def write_segments(
    dialogue: Dialogue, template: Template, system: str | None, add_generation_prompt: bool
) -> list[Segment]:
    """The segments of a dialogue. The messages' own system message wins over `system`, that over the default.

    Raises:
        UserError: the template has no place for the system message, or a generation prompt would follow an
            assistant turn.
    """
    if dialogue.system is not None:
        system = dialogue.system
    if system and template.system is None:
        raise UserError(
            f"template {template.name!r} has no place for a system message; leave it out (found {repr(system)[:80]})"
        )
    if system is None:
        system = template.default_system
    turns = dialogue.turns
    if add_generation_prompt and template.alternating and turns and turns[-1].role == "assistant":
        raise UserError("a generation prompt must follow a user turn, the last turn is the assistant's")

    segments: list[Segment] = []
    block: list[Segment] = []
    if template.system and system:
        before, after = template.system
        block = [*_literal(template, before), Text(system), *_literal(template, after)]
    if not template.system_in_user:
        segments += block
    for number, turn in enumerate(turns):
        if turn.role == "user":
            if number:
                segments += _literal(template, template.next_user)
            segments += _literal(template, template.user[0])
            if template.system_in_user and number == 0:
                segments += block
            segments += _user_content(turn, template)
            segments += _literal(template, template.user[1])
        else:
            segments += _literal(template, template.header)
            segments += _literal(template, template.answer[0], True)
            segments.append(Text("".join(turn.parts), True))
            segments += _literal(template, template.answer[1], True)
            segments += _literal(template, template.after_answer)
    if add_generation_prompt:
        segments += _literal(template, template.header)
    else:
        segments += _literal(template, template.end, bool(turns) and turns[-1].role == "assistant")
    return strip_around_images(segments) if template.strip_around_images else segments


def _user_content(turn: Turn, template: Template) -> Iterator[Segment]:
    beside_images = None in turn.parts
    keep_text = {"keep": True, "drop": False, "drop_beside_images": not beside_images}[template.user_text]
    for part in turn.parts:
        if part is None:
            yield Image()
        elif keep_text:
            yield Text(part)


def _literal(template: Template, literal: str, supervised: bool = False) -> tuple[Segment, ...]:
    return split_literal(literal, template.control, supervised) if literal else ()


@lru_cache(maxsize=4096)
def split_literal(literal: str, control: tuple[str, ...], supervised: bool = False) -> tuple[Segment, ...]:
    """What a template itself writes, as text and control segments."""
    tokens = sorted({BOS, EOS, *control}, key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, tokens)) + ")", literal)
    kinds = (Control if piece in tokens else Text for piece in pieces)
    return tuple(kind(piece, supervised) for kind, piece in zip(kinds, pieces, strict=True) if piece)


def strip_around_images(segments: list[Segment], before: bool = True, after: bool = True) -> list[Segment]:
    """The segments without the white space that touches an image on the given sides."""
    if after:
        segments = _strip_after_images(segments, str.lstrip)
    if before:
        segments = _strip_after_images(segments[::-1], str.rstrip)[::-1]
    return segments


def _strip_after_images(segments: list[Segment], strip: Callable[[str, str], str]) -> list[Segment]:
    kept: list[Segment] = []
    touching = False
    for segment in segments:
        if isinstance(segment, Text):
            if touching:
                segment = Text(strip(segment.text, WHITE_SPACE), segment.supervised)
            if not segment.text:
                continue
            touching = False
        else:
            touching = isinstance(segment, Image)
        kept.append(segment)
    return kept
