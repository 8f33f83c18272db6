"""A conversation as typed segments: text, control tokens and images.

The code that writes a segment decides its type, so what a user types can only become text.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import NamedTuple

# Unicode White_Space, which is what the tokenizers library strips. Python's str.strip removes more characters.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"


@dataclass(frozen=True)
class SlotTokens:
    """The tokens that stand for an image: `start` once, `pad` once per image feature, `end` once."""

    pad: str
    start: str | None = None
    end: str | None = None

    @property
    def group(self) -> str:
        """One image as a chat template writes it, before the processor expands it."""
        return (self.start or "") + self.pad + (self.end or "")

    @property
    def tokens(self) -> list[str]:
        """The tokens that are set, in the order in which `mmchat init` adds them to a tokenizer."""
        return [token for token in (self.start, self.pad, self.end) if token]

    def to_dict(self) -> dict[str, str | None]:
        """The form that a model's config keeps; `SlotTokens(**values)` reads it."""
        return asdict(self)


DEFAULT_SLOTS = SlotTokens(pad="<imgpad>", start="<img>", end="</img>")


class Text(NamedTuple):
    """Text. It never becomes a control token."""

    text: str
    supervised: bool = False


class Control(NamedTuple):
    """A control token."""

    token: str
    """The content of an added token of the tokenizer."""
    supervised: bool = False


class Image(NamedTuple):
    """The place of an image."""


Segment = Text | Control | Image
Expansion = int | Sequence[int | str]
"""What stands for an image in the token sequence: a number of slots; or numbers of slots and literal text of markers
between them, in which added tokens of the tokenizer are control tokens."""
Spans = Sequence[tuple[int, int]]
"""Character spans [start, stop)."""


def parse_segments(
    text: str, pattern: re.Pattern, supervised: Spans, to_segment: Callable[[re.Match, bool], Segment]
) -> list[Segment]:
    """Split a text into segments.

    Args:
        text: The text.
        pattern: Matches the tokens in it.
        supervised: Spans to supervise. A match belongs to the span in which it begins.
        to_segment: Makes a segment of a match: `to_segment(match, is_supervised)`. The rest becomes `Text`.
    """
    return list(_parse(text, pattern, supervised, to_segment))


def _parse(
    text: str, pattern: re.Pattern, supervised: Spans, to_segment: Callable[[re.Match, bool], Segment]
) -> Iterator[Segment]:
    borders = sorted({border for span in supervised for border in span})

    def inside(position: int) -> bool:
        return any(start <= position < stop for start, stop in supervised)

    def between(start: int, stop: int) -> Iterator[Text]:
        for first, last in pairwise([start, *(border for border in borders if start < border < stop), stop]):
            if first < last:
                yield Text(text[first:last], inside(first))

    position = 0
    for match in pattern.finditer(text):
        yield from between(position, match.start())
        yield to_segment(match, inside(match.start()))
        position = match.end()
    yield from between(position, len(text))


def strip_around_images(segments: list[Segment], before: bool = True, after: bool = True) -> list[Segment]:
    """Remove white space directly before and after images."""
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
