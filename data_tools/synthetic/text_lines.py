"""Single lines of text on small images: what is written, in which face, size, place and shade."""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from synthetic.fonts import Face, families
from synthetic.generate import Sample
from synthetic.label_check import Piece, check
from synthetic.records import image_path, record

ENGLISH, SHUFFLED, LETTERS = "english", "shuffled", "letters"
KINDS = (ENGLISH, SHUFFLED, LETTERS)
SHARES = (2, 1, 1)
"""How often there is each kind: half is real English, the other half is nothing that a language model could guess."""
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
SMALLEST = 9
"""Height in pixels of the smallest letters' em."""
PLAIN_SIZE = 0.6
"""Of the image's height: the em of lines without freedom, if they fit."""
SHORTEST = 3
TRAIN = "train"


@dataclass(frozen=True)
class Style:
    """How images of lines look.

    size: width and height of a line's place in pixels. longest: characters of a line at most. prompt: what is asked.
    freedom: 0 to 1, how far size, place and shades depart from a line at the left in black on white.
    rows: places under each other. Images to learn from have lines in 1 to all of them, others one line in any.
    """

    size: tuple[int, int]
    longest: int
    prompt: str
    freedom: float = 1.0
    rows: int = 1


@dataclass(frozen=True)
class Line:
    kind: str
    text: str
    family: str
    image: Image.Image


@dataclass(frozen=True)
class LineMaker:
    """Makes sample `n` of one split.

    taboo: lines of other splits, which must not come here.
    unseen: the family that is kept from training; half of the lines of a held-out split are in it.
    """

    split: str
    seed: int
    texts: Sequence[str]
    faces: Sequence[Face]
    style: Style
    taboo: frozenset[str] = frozenset()
    unseen: str | None = None

    def __call__(self, number: int) -> Sample:
        rng, rows = random.Random(f"{self.seed}/{self.split}/{number}"), self.style.rows
        width, height = self.style.size
        where = f"line {number} of {self.split}, seed {self.seed}"
        lines = [self.line(rng, where)]
        if rows > 1 and self.split == TRAIN:
            lines += [self.line(rng, where) for _ in range(rng.randrange(rows))]
        first = rng.randrange(rows - len(lines) + 1) if rows > 1 else 0
        image = Image.new("L", (width, height * rows), 255)
        for row, line in enumerate(lines, first):
            image.paste(line.image, (0, row * height))
        name = image_path(self.split, number, "png")
        text = "\n".join(line.text for line in lines)
        about = {"kinds": [self.group(lines)], "families": [line.family for line in lines]}
        made = record(f"{self.split}/{number:07}", name, self.style.prompt, text, **about)
        return Sample({self.split: [made]}, {name: encoded(image)})

    def line(self, rng: random.Random, where: str) -> "Line":
        kind, text = self.written(rng)
        face = self.face(rng, text)
        return Line(kind, text, face.family, draw(rng, text, face, self.style, where))

    def group(self, lines: Sequence["Line"]) -> str:
        """What a score is told by."""
        if len(lines) > 1:
            return "several lines"
        (line,) = lines
        return f"{line.kind}, unseen family" if line.family == self.unseen else line.kind

    def text(self, number: int) -> str:
        """What sample `number` says."""
        return self.written(random.Random(f"{self.seed}/{self.split}/{number}"))[1]

    def written(self, rng: random.Random) -> tuple[str, str]:
        """Kind and text of a line."""
        kind = rng.choices(KINDS, SHARES)[0]
        while True:
            longest = rng.randint(SHORTEST, self.style.longest)
            text = {ENGLISH: english, SHUFFLED: shuffled, LETTERS: letters}[kind](rng, self.texts, longest)
            if text and text not in self.taboo:
                return kind, text

    def face(self, rng: random.Random, text: str) -> Face:
        faces = [face for face in self.faces if face.covers(text)]
        seen = [face for face in faces if face.family != self.unseen]
        kept = [face for face in faces if face.family == self.unseen]
        choice = kept if kept and rng.random() < 0.5 else seen
        family = rng.choice(families(choice))
        return rng.choice([face for face in choice if face.family == family])


def english(rng: random.Random, texts: Sequence[str], longest: int) -> str:
    """Words as they follow each other in a text, from any word on; "" where the first is too long."""
    words = rng.choice(texts).split()
    return _fill(words[rng.randrange(len(words)) :], longest)


def shuffled(rng: random.Random, texts: Sequence[str], longest: int) -> str:
    """Words of the texts, each from somewhere else."""
    return _fill([rng.choice(rng.choice(texts).split()) for _ in range(longest // 2)], longest)


def letters(rng: random.Random, texts: Sequence[str], longest: int) -> str:
    """Letters and digits, each as likely as any other, in groups of up to eight."""
    groups, left = [], longest
    while left > 0:
        group = "".join(rng.choices(CHARACTERS, k=min(left, rng.randint(1, 8))))
        groups.append(group)
        left -= len(group) + 1
    return " ".join(groups)


def _fill(words: Sequence[str], longest: int) -> str:
    line = ""
    for word in words:
        longer = f"{line} {word}".strip()
        if len(longer) > longest:
            break
        line = longer
    return line


def draw(rng: random.Random, text: str, face: Face, style: Style, where: str) -> Image.Image:
    """One line in a size in which it fits, wherever it is whole, dark on light or light on dark."""
    (width, height), freedom = style.size, style.freedom
    largest = round(height * (PLAIN_SIZE + (1 - PLAIN_SIZE) * freedom))
    while largest > SMALLEST and not _fits(face, largest, text, style.size):
        largest -= 1
    font = face.at(rng.randint(min(max(SMALLEST, round(largest * (1 - 0.4 * freedom))), largest), largest))
    left, top, right, bottom = font.getbbox(text)
    free_x, free_y = width - 2 - (right - left), height - 2 - (bottom - top)
    x = 1 - left + round(max(0, free_x) * freedom * rng.random())
    y = 1 - top + round(max(0, free_y) * (0.5 + freedom * (rng.random() - 0.5)))
    paper, ink = 255 - round(55 * freedom * rng.random()), round(90 * freedom * rng.random())
    if rng.random() < 0.15 * freedom:
        paper, ink = 255 - paper, 255 - ink
    image = Image.new("L", style.size, paper)
    pen = ImageDraw.Draw(image)
    pen.text((x, y), text, fill=ink, font=font)
    room = (0, 0, width, height)
    check([Piece(text, pen.textbbox((x, y), text, font=font), room)], text, room, where)
    return image


def _fits(face: Face, size: int, text: str, image: tuple[int, int]) -> bool:
    left, top, right, bottom = face.at(size).getbbox(text)
    return right - left <= image[0] - 2 and bottom - top <= image[1] - 2


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
