"""Pages of real text: the image and its record."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image, ImageDraw

from mmchat.errors import UserError
from synthetic.degradation import WHITE, Degradation, degrade, encode_image, sample_degradation
from synthetic.fonts import Face, families
from synthetic.generate import Sample, retry_defects
from synthetic.label_check import check_label, check_rotation
from synthetic.page_layout import Page, PageStyle, compose
from synthetic.records import image_path, make_record
from synthetic.text_folder import Paragraph, TextFolder

PLAIN_STYLES = ("Regular", "Book", "Roman", "Normal", "Medium")
BOLD = "Bold"
DENSEST = 2
"""Upper bound on characters per em square, with a margin for text that is skipped because no font covers it."""
_RULE = 60
"""Grey level of lines."""
_TRIES = 200


@dataclass(frozen=True)
class PageMaker:
    """Makes page `n`.

    Attributes:
        side: side of the square page in pixels.
        ems: smallest and largest font size of the body in pixels.
        level: degradation level.
    """

    seed: int
    texts: TextFolder
    faces: Sequence[Face]
    side: int
    ems: tuple[int, int]
    level: str
    prompt: str

    def __call__(self, number: int) -> Sample:
        return retry_defects(partial(self.sample, number))

    def sample(self, number: int, attempt: int = 0) -> Sample:
        """Raises DefectError if the page does not show its label."""
        page, degradation = self.compose(number, attempt)
        self.check(number, page, degradation)
        image = degrade(draw(page), degradation, [self.seed, number])
        name = image_path("pages", number, degradation.suffix)
        page_record = make_record(f"pages/{number:07}", name, self.prompt, page.text)
        return Sample({"pages": [page_record]}, {name: encode_image(image, degradation.quality)})

    def compose(self, number: int, attempt: int = 0) -> tuple[Page, Degradation]:
        rng = random.Random(f"{self.seed}/{number}/{attempt}")
        body, paragraphs = self.sample_content(rng, round(DENSEST * (self.side / self.ems[0]) ** 2))
        bold = [face for face in self.faces if face.family == body.family and face.style == BOLD]
        style = PageStyle.choose(rng, self.side, body, bold[0] if bold else body, self.ems)
        page = compose(rng, style, paragraphs, [face for face in self.faces if face.style in PLAIN_STYLES])
        return page, sample_degradation(rng, self.level)

    def check(self, number: int, page: Page, degradation: Degradation) -> None:
        where = f"page {number} of seed {self.seed}"
        pieces = [run.piece for run in page.runs]
        check_label(pieces, page.text, (0, 0, page.side, page.side), where)
        check_rotation(pieces, degradation.degrees, page.side, where)

    def sample_content(self, rng: random.Random, characters: int) -> tuple[Face, list[Paragraph]]:
        """Paragraphs from random places of the texts, about `characters` characters, and a font that covers them."""
        body, chosen, length = None, [], 0
        for _ in range(_TRIES):
            for paragraph in self.texts.paragraphs_from(rng.randrange(self.texts.size)):
                body = body or self.sample_body(rng, paragraph.text)
                if body and body.covers(paragraph.text):
                    chosen.append(paragraph)
                    length += len(paragraph.text)
            if length >= characters:
                break
        if not (body and length):
            raise UserError(f"no font has the characters of these texts ({len(self.faces)} faces); see --fonts")
        return body, chosen

    def sample_body(self, rng: random.Random, text: str) -> Face | None:
        """A random font for a text: families are equally likely, plain styles are chosen nine times in ten."""
        candidates = [face for face in self.faces if face.covers(text)]
        if not candidates:
            return None
        family = rng.choice(families(candidates))
        styles = [face for face in candidates if face.family == family]
        plain = [face for face in styles if face.style in PLAIN_STYLES]
        return rng.choice(plain if plain and rng.random() < 0.9 else styles)


def draw(page: Page) -> Image.Image:
    """Black on white, uint8[side, side]."""
    image = Image.new("L", (page.side, page.side), WHITE)
    pen = ImageDraw.Draw(image)
    for run in page.runs:
        pen.text((run.x, run.baseline), run.text, fill=0, font=run.face.at(run.size), anchor="ls")
    for left, top, right, bottom in page.rules:
        width, height = max(1, round(right - left)), max(1, round(bottom - top))
        image.paste(_RULE, (round(left), round(top), round(left) + width, round(top) + height))
    return image
