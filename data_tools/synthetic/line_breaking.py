"""Breaks text into lines of a column, between words and between Chinese characters. Lengths are in pixels."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from synthetic.fonts import Face, width

_WIDE = r"[\u2e80-\u2fff\u3000-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]"
_CLOSING = r"[\u3001\u3002\u300b\u300d\u300f\u3011\u2019\u201d\uff01\uff09\uff0c\uff1a\uff1b\uff1f]"
_TOKEN = re.compile(rf"{_WIDE}{_CLOSING}*|(?:(?!{_WIDE})\S)+{_CLOSING}*")
"""Unbreakable units: a Latin word, or a Chinese character with following punctuation that must not start a line."""


@dataclass(frozen=True)
class BrokenLine:
    """One line of a block of text.

    Attributes:
        words: unbreakable units.
        glues: text between the words.
        length: width of the line.
        end: offset of the line's end in the text of the block.
        next_glue: text between this line and the next.
        last: whether it is the last line of the block.
    """

    words: list[str]
    glues: list[str]
    length: float
    end: int
    next_glue: str
    last: bool

    @property
    def text(self) -> str:
        return self.words[0] + "".join(glue + word for glue, word in zip(self.glues, self.words[1:], strict=True))


def break_lines(text: str, face: Face, size: int, max_width: float, indent: float) -> Iterator[BrokenLine]:
    """Greedy lines of at most `max_width` pixels; `indent` shortens the first line."""
    space = width(face, size, " ")
    words, glues, length, end = [], [], indent, 0
    for word, glue, word_end in _words(text, face, size, max_width - indent):
        longer = length + width(face, size, word) + (space if glue and words else 0.0)
        if words and longer > max_width:
            yield BrokenLine(words, glues, length, end, glue, False)
            words, glues, longer = [], [], width(face, size, word)
        elif words:
            glues.append(glue)
        words.append(word)
        length, end = longer, word_end
    yield BrokenLine(words, glues, length, end, "", True)


def _words(text: str, face: Face, size: int, max_width: float) -> Iterator[tuple[str, str, int]]:
    """(unbreakable unit, glue before it: a space or nothing, end offset in the text).

    A word wider than a line is cut after any of its characters.
    """
    end = 0
    for match in _TOKEN.finditer(text):
        glue, word = " " if match.start() > end and end else "", match[0]
        while width(face, size, word) > max_width and len(word) > 1:
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or width(face, size, word[:n]) <= max_width)
            yield word[:fits], glue, match.end() - len(word) + fits
            word, glue = word[fits:], ""
        yield word, glue, match.end()
        end = match.end()
