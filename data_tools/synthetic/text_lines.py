"""Images of single lines of text: their text, font, size, position and grey levels."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from synthetic.degradation import encode_image
from synthetic.fonts import Face, families
from synthetic.generate import Sample
from synthetic.label_check import Piece, check_label
from synthetic.records import image_path, make_record

ENGLISH, SHUFFLED, LETTERS = "english", "shuffled", "letters"
KINDS = (ENGLISH, SHUFFLED, LETTERS)
SHARES = (2, 1, 1)
"""Relative frequency of each kind. Half of the lines are English; a language model cannot guess the other half."""
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
SMALLEST = 9
"""Smallest font size in pixels."""
PLAIN_SIZE = 0.6
"""Font size of lines with freedom 0, as a fraction of the image height, if they fit."""
SHORTEST = 3
TRAIN = "train"


@dataclass(frozen=True)
class LineStyle:
    """Appearance of images of lines.

    Attributes:
        size: width and height of one line slot in pixels.
        longest: maximum characters of a line.
        prompt: the question.
        freedom: 0 to 1. 0 draws black on white at the left; 1 varies size, position and grey levels fully.
        rows: line slots of an image, one below the other. Training images fill 1 to all of them, others one.
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

    Attributes:
        excluded: lines that must not occur, such as those of other splits.
        unseen: font family that is excluded from training; half of the lines of the held-out split use it.
    """

    split: str
    seed: int
    texts: Sequence[str]
    faces: Sequence[Face]
    style: LineStyle
    excluded: frozenset[str] = frozenset()
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
        metadata = {"kinds": [self.kind_of(lines)], "families": [line.family for line in lines]}
        sample_record = make_record(f"{self.split}/{number:07}", name, self.style.prompt, text, **metadata)
        return Sample({self.split: [sample_record]}, {name: encode_image(image)})

    def line(self, rng: random.Random, where: str) -> "Line":
        kind, text = self.sample_text(rng)
        face = self.sample_face(rng, text)
        return Line(kind, text, face.family, draw(rng, text, face, self.style, where))

    def kind_of(self, lines: Sequence["Line"]) -> str:
        """The kind under which scores of the image are reported."""
        if len(lines) > 1:
            return "several lines"
        (line,) = lines
        return f"{line.kind}, unseen family" if line.family == self.unseen else line.kind

    def text(self, number: int) -> str:
        """Text of the first line of sample `number`."""
        return self.sample_text(random.Random(f"{self.seed}/{self.split}/{number}"))[1]

    def sample_text(self, rng: random.Random) -> tuple[str, str]:
        """Kind and text of a random line."""
        kind = rng.choices(KINDS, SHARES)[0]
        while True:
            longest = rng.randint(SHORTEST, self.style.longest)
            text = {ENGLISH: english, SHUFFLED: shuffled, LETTERS: letters}[kind](rng, self.texts, longest)
            if text and text not in self.excluded:
                return kind, text

    def sample_face(self, rng: random.Random, text: str) -> Face:
        faces = [face for face in self.faces if face.covers(text)]
        training = [face for face in faces if face.family != self.unseen]
        unseen = [face for face in faces if face.family == self.unseen]
        candidates = unseen if unseen and rng.random() < 0.5 else training
        family = rng.choice(families(candidates))
        return rng.choice([face for face in candidates if face.family == family])


def english(rng: random.Random, texts: Sequence[str], longest: int) -> str:
    """Consecutive words of a random text from a random word on; "" if the first word is too long."""
    words = rng.choice(texts).split()
    return _fill(words[rng.randrange(len(words)) :], longest)


def shuffled(rng: random.Random, texts: Sequence[str], longest: int) -> str:
    """Words from random places of the texts."""
    return _fill([rng.choice(rng.choice(texts).split()) for _ in range(longest // 2)], longest)


def letters(rng: random.Random, texts: Sequence[str], longest: int) -> str:
    """Uniformly random letters and digits in groups of up to eight."""
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


def draw(rng: random.Random, text: str, face: Face, style: LineStyle, where: str) -> Image.Image:
    """One line in a font size and at a position where it fits, dark on light or light on dark."""
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
    check_label([Piece(text, pen.textbbox((x, y), text, font=font), room)], text, room, where)
    return image


def _fits(face: Face, size: int, text: str, image: tuple[int, int]) -> bool:
    left, top, right, bottom = face.at(size).getbbox(text)
    return right - left <= image[0] - 2 and bottom - top <= image[1] - 2
