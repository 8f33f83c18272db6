"""From real text to the image of a page and its record."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image, ImageDraw

from mmchat.errors import UserError
from synthetic import degradation
from synthetic.fonts import Face, families
from synthetic.generate import Sample, redrawn
from synthetic.label_check import check, check_turned
from synthetic.page_layout import Page, Style, compose
from synthetic.records import image_path, record
from synthetic.text_folder import Paragraph, TextFolder

PLAIN_STYLES = ("Regular", "Book", "Roman", "Normal", "Medium")
BOLD = "Bold"
DENSEST = 2
"""Characters in a square of an em, at most, and what is left out because no face has it."""
_RULE = 60
"""Shade of lines."""
_TRIES = 200


@dataclass(frozen=True)
class PageMaker:
    """Makes page `n`. side: of the square page; ems: of the body, the smallest and the largest; both in pixels."""

    seed: int
    texts: TextFolder
    faces: Sequence[Face]
    side: int
    ems: tuple[int, int]
    level: str
    prompt: str

    def __call__(self, number: int) -> Sample:
        return redrawn(partial(self.sample, number))

    def sample(self, number: int, attempt: int = 0) -> Sample:
        """Raises DefectError if the page is not what its text says."""
        page, wear = self.compose(number, attempt)
        self.check(number, page, wear)
        image = degradation.apply(draw(page), wear, [self.seed, number])
        name = image_path("pages", number, wear.suffix)
        said = record(f"pages/{number:07}", name, self.prompt, page.text)
        return Sample({"pages": [said]}, {name: degradation.encoded(image, wear)})

    def compose(self, number: int, attempt: int = 0) -> tuple[Page, degradation.Degradation]:
        rng = random.Random(f"{self.seed}/{number}/{attempt}")
        body, paragraphs = self.content(rng, round(DENSEST * (self.side / self.ems[0]) ** 2))
        bold = [face for face in self.faces if face.family == body.family and face.style == BOLD]
        style = Style.choose(rng, self.side, body, bold[0] if bold else body, self.ems)
        page = compose(rng, style, paragraphs, [face for face in self.faces if face.style in PLAIN_STYLES])
        return page, degradation.choose(rng, self.level)

    def check(self, number: int, page: Page, wear: degradation.Degradation) -> None:
        where = f"page {number} of seed {self.seed}"
        pieces = [run.piece for run in page.runs]
        check(pieces, page.text, (0, 0, page.side, page.side), where)
        check_turned(pieces, wear.degrees, page.side, where)

    def content(self, rng: random.Random, characters: int) -> tuple[Face, list[Paragraph]]:
        """Paragraphs from somewhere in the texts, about as many characters, and a face that can draw all of them."""
        body, chosen, found = None, [], 0
        for _ in range(_TRIES):
            for paragraph in self.texts.stretch(rng.randrange(self.texts.size)):
                body = body or self.body(rng, paragraph.text)
                if body and body.covers(paragraph.text):
                    chosen.append(paragraph)
                    found += len(paragraph.text)
            if found >= characters:
                break
        if not (body and found):
            raise UserError(f"no font has the characters of these texts ({len(self.faces)} faces); see --fonts")
        return body, chosen

    def body(self, rng: random.Random, text: str) -> Face | None:
        """A face for a text, families equally often; plain ones nine times of ten."""
        able = [face for face in self.faces if face.covers(text)]
        if not able:
            return None
        family = rng.choice(families(able))
        styles = [face for face in able if face.family == family]
        plain = [face for face in styles if face.style in PLAIN_STYLES]
        return rng.choice(plain if plain and rng.random() < 0.9 else styles)


def draw(page: Page) -> Image.Image:
    """Black on white, uint8[side, side]."""
    image = Image.new("L", (page.side, page.side), degradation.WHITE)
    pen = ImageDraw.Draw(image)
    for run in page.runs:
        pen.text((run.x, run.baseline), run.text, fill=0, font=run.face.at(run.size), anchor="ls")
    for left, top, right, bottom in page.rules:
        across, down = max(1, round(right - left)), max(1, round(bottom - top))
        image.paste(_RULE, (round(left), round(top), round(left) + across, round(top) + down))
    return image
