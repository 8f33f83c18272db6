"""Typesets a page: positions of text runs in reading order, and the label of the page.

Text flows through columns until they are full. All lengths are in pixels; y grows downwards.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from synthetic.fonts import Face, width
from synthetic.formulas import formula
from synthetic.label_check import Box, Piece
from synthetic.line_breaking import break_lines
from synthetic.text_folder import Paragraph

OVERHANG = 0.3
"""How far ink may extend beyond its column, in em; slanted letters do."""
BREAK = "\n"
"""Separator between blocks in the label of a page."""


@dataclass(frozen=True)
class TextRun:
    """Text in one font, starting at (x, baseline). room, glue: as in `Piece`."""

    text: str
    x: int
    baseline: int
    face: Face
    size: int
    room: Box
    glue: str

    @property
    def piece(self) -> Piece:
        left, top, right, bottom = self.face.at(self.size).getbbox(self.text, anchor="ls")
        box = (self.x + left, self.baseline + top, self.x + right, self.baseline + bottom)
        return Piece(self.text, box, self.room, self.glue)


@dataclass(frozen=True)
class Page:
    """A typeset page.

    Attributes:
        side: of the square page.
        runs: text runs in reading order.
        rules: lines of tables and between columns.
        text: label of the page.
    """

    side: int
    runs: tuple[TextRun, ...]
    rules: tuple[Box, ...]
    text: str


@dataclass(frozen=True)
class PageStyle:
    """Typography of one page.

    Attributes:
        em: font size of the body.
        leading: distance between baselines in em.
        margins: horizontal and vertical.
        indent: of the first line of a paragraph, in em.
        gap: between paragraphs, in em.
        ruled: whether a line separates the columns.
    """

    side: int
    body: Face
    bold: Face
    em: int
    leading: float
    margins: tuple[int, int]
    columns: int
    justified: bool
    indent: float
    gap: float
    ruled: bool

    @classmethod
    def choose(cls, rng: random.Random, side: int, body: Face, bold: Face, ems: tuple[int, int]) -> "PageStyle":
        em = round(ems[0] + (ems[1] - ems[0]) * rng.random() ** 2)  # small sizes are more frequent: pages are dense
        columns = 2 if rng.random() < 0.4 and side > 50 * em else 1
        return cls(
            side=side,
            body=body,
            bold=bold,
            em=em,
            leading=rng.uniform(1.15, 1.6),
            margins=(round(side * rng.uniform(0.06, 0.12)), round(side * rng.uniform(0.06, 0.1))),
            columns=columns,
            justified=rng.random() < 0.5,
            indent=rng.choice((0.0, 0.0, 1.5)),
            gap=rng.choice((0.0, 0.5, 0.8)),
            ruled=columns == 2 and rng.random() < 0.2,
        )


def compose(rng: random.Random, style: PageStyle, paragraphs: Sequence[Paragraph], faces: Sequence[Face]) -> Page:
    """A page filled with the paragraphs, with headings, tables and formulas between them. The last one may be cut.

    Args:
        faces: fonts for formulas that the body font does not cover.
    """
    typesetter = _Typesetter(style)
    if rng.random() < 0.3:
        typesetter.title(_heading(rng, rng.choice(paragraphs).text, 8))
    typesetter.begin_columns()
    number = rng.randint(1, 9)
    for paragraph in paragraphs:
        if typesetter.full:
            break
        if paragraph.heading:
            typesetter.heading(paragraph.text)
            continue
        length = len(paragraph.text)
        if rng.random() < length / 3000:
            number += 1
            typesetter.heading(f"{number} {_heading(rng, paragraph.text, 5)}")
        typesetter.paragraph(paragraph.text)
        if rng.random() < length / 5000:
            typesetter.table(_table(rng, paragraph.text), rng.random() < 0.5)
        if rng.random() < length / 4000:
            text = formula(rng)
            face = next((face for face in (style.body, *faces) if face.covers(text)), None)
            if face:
                typesetter.formula(text, face, f"({rng.randint(1, 40)})" if rng.random() < 0.6 else "")
    if rng.random() < 0.4:
        typesetter.page_number(str(rng.randint(1, 999)))
    return Page(style.side, tuple(typesetter.runs), tuple(typesetter.rules), "".join(typesetter.label))


class _Typesetter:
    """Typesets a page block by block. The label is built from the source text, independent of the runs."""

    def __init__(self, style: PageStyle) -> None:
        self.style = style
        self.runs: list[TextRun] = []
        self.rules: list[Box] = []
        self.label: list[str] = []
        self.full = False
        self.columns: list[tuple[float, float]] = [(style.margins[0], style.side - style.margins[0])]
        self.column = 0
        self.top = self.y = float(style.margins[1])
        self.bottom = style.side - style.margins[1]

    def begin_columns(self) -> None:
        """Start the columns below the current position."""
        style = self.style
        left, right = self.columns[0]
        gutter = 2.0 * style.em
        column_width = (right - left - gutter * (style.columns - 1)) / style.columns
        self.columns = [
            (left + at * (column_width + gutter), left + at * (column_width + gutter) + column_width)
            for at in range(style.columns)
        ]
        self.top = self.y
        if style.ruled:
            middle = (left + right) / 2
            self.rules.append((middle, self.top, middle + 1, self.bottom))

    def title(self, text: str) -> None:
        size = round(self.style.em * 1.8)
        self._flow(text, self.style.bold, size, centred=True)
        self.y += size

    def heading(self, text: str) -> None:
        size = round(self.style.em * 1.25)
        if not self._room(4 * self._height(size)):  # no heading without text below it
            self.full = True
            return
        self._skip(0.6 * size)
        self._flow(text, self.style.bold, size)
        self._skip(0.2 * size)

    def paragraph(self, text: str) -> None:
        style = self.style
        self._flow(text, style.body, style.em, indent=style.indent * style.em, justified=style.justified)
        self._skip(style.gap * style.em)

    def formula(self, text: str, face: Face, number: str) -> None:
        """A centred formula with its number at the right; skipped if it does not fit."""
        size = self.style.em
        length, tail = width(face, size, text), width(self.style.body, size, number)
        if length + 2 * tail + 2 * size > self._column_width or not self._room(3 * self._height(size)):
            return
        left, right = self.columns[self.column]
        self._skip(0.5 * size)
        baseline = self._line(size)
        glue = self._begin()
        self._run(text, (left + right - length) / 2, baseline, face, size, glue)
        self.label.append(glue + text)
        if number:
            self._run(number, right - tail, baseline, self.style.body, size, " ")
            self.label.append(" " + number)
        self._skip(0.5 * size)

    def table(self, rows: list[list[str]], grid: bool) -> None:
        """A table whose first row is the header; skipped if it does not fit."""
        style, size = self.style, self.style.em
        height = self._height(size) + 0.3 * size
        cell_width = self._column_width / len(rows[0])
        widest = max(width(style.bold, size, cell) for row in rows for cell in row)
        if widest > cell_width - size or not self._room(height * (len(rows) + 1)):
            return
        left, right = self.columns[self.column]
        self._skip(0.5 * size)
        glue, top = self._begin(), self.y
        for number, row in enumerate(rows):
            face = style.body if number else style.bold
            self.y += 0.15 * size
            baseline = self._line(size)
            self.y += 0.15 * size
            for place, cell in enumerate(row):
                start = left + place * cell_width
                room = (start, top + number * height, start + cell_width, top + (number + 1) * height)
                glue = (BREAK if number else glue) if place == 0 else " "
                self.runs.append(TextRun(cell, round(start + 0.5 * size), round(baseline), face, size, room, glue))
                self.label.append(glue + cell)
        between = range(len(rows) + 1) if grid else (0, 1, len(rows))
        self.rules += [(left, top + at * height, right, top + at * height + 1) for at in between]
        if grid:
            self.rules += [
                (left + at * cell_width, top, left + at * cell_width + 1, self.y) for at in range(len(rows[0]) + 1)
            ]
        self._skip(0.5 * size)

    def page_number(self, text: str) -> None:
        """The page number, centred in the lower margin."""
        style = self.style
        baseline = style.side - 0.4 * style.margins[1]
        start = (style.side - width(style.body, style.em, text)) / 2
        room = (0, self.bottom, style.side, style.side)
        self.runs.append(TextRun(text, round(start), round(baseline), style.body, style.em, room, BREAK))
        self.label.append(BREAK + text)

    def _flow(
        self, text: str, face: Face, size: int, indent: float = 0.0, justified: bool = False, centred: bool = False
    ) -> None:
        """Break a block into lines and set as many as fit."""
        space = width(face, size, " ")
        first = glue = self._begin()
        end = 0
        for line in break_lines(text, face, size, self._column_width, indent):
            if not self._room(self._height(size)):
                self.full = True
                break
            left, right = self.columns[self.column]
            baseline = self._line(size)
            start = left + (indent if end == 0 else 0.0)
            if centred:
                start += (right - left - line.length) / 2
            gaps = line.glues.count(" ")
            if justified and not line.last and gaps:
                stretched = space + (right - start - line.length) / gaps
                for word, before in zip(line.words, (glue, *line.glues), strict=True):
                    start += stretched if before == " " and word is not line.words[0] else 0.0
                    self._run(word, start, baseline, face, size, before)
                    start += width(face, size, word)
            else:
                self._run(line.text, start, baseline, face, size, glue)
            glue, end = line.next_glue, line.end
        if end:
            self.label.append(first + text[:end])

    def _run(self, text: str, x: float, baseline: float, face: Face, size: int, glue: str) -> None:
        left, right = self.columns[self.column]
        room = _outset((left, self.top, right, self.bottom), OVERHANG * size)
        self.runs.append(TextRun(text, round(x), round(baseline), face, size, room, glue))

    @property
    def _column_width(self) -> float:
        """Width of a column."""
        left, right = self.columns[self.column]
        return right - left

    def _begin(self) -> str:
        return BREAK if self.label else ""

    def _height(self, size: int) -> int:
        return round(self.style.leading * size)

    def _line(self, size: int) -> float:
        """Baseline of the next line; moves the position below it. The caller has checked that the line fits."""
        height = self._height(size)
        self.y += height
        return self.y - (height - size) / 2 - 0.2 * size

    def _room(self, height: float) -> bool:
        """Whether `height` fits in this column or the next; moves to the next column if needed."""
        if self.y + height > self.bottom:
            if self.column + 1 == len(self.columns) or self.top + height > self.bottom:
                return False
            self.column += 1
            self.y = self.top
        return True

    def _skip(self, height: float) -> None:
        if self.y > self.top:
            self.y += height


def _heading(rng: random.Random, text: str, max_words: int) -> str:
    """The first words of a text, without punctuation at the ends."""
    words = text.split()[: rng.randint(1, max_words)]
    return " ".join(words).strip(" .,;:!?\u3002\uff0c")[:40].rstrip() or "1"


def _table(rng: random.Random, text: str) -> list[list[str]]:
    """A header and up to six rows: words of the text in the first column, numbers in the others."""
    words = [word.strip(".,;:()\"'") for word in text.split()]
    words = [word for word in words if 2 < len(word) < 14] or ["Total"]
    columns = rng.randint(2, 4)
    head = [rng.choice(words) for _ in range(columns)]
    rows = [[rng.choice(words), *(_number(rng) for _ in range(columns - 1))] for _ in range(rng.randint(2, 6))]
    return [head, *rows]


def _number(rng: random.Random) -> str:
    value = rng.uniform(0, 10 ** rng.randint(1, 4))
    return rng.choice((f"{value:.0f}", f"{value:.1f}", f"{value:.2f}", f"{value / 100:.0f}%"))


def _outset(box: Box, by: float) -> Box:
    return (box[0] - by, box[1] - by, box[2] + by, box[3] + by)
