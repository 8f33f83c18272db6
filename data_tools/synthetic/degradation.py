"""What happens to a page between the printer and the file: skew, blur, paper, noise, JPEG."""

import io
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter

WHITE = 255
_GREY = 128
"""The shade that leaves a page as it is when noise is added."""
_TILE = 512
"""Side of the square of noise that is repeated over the page."""


@dataclass(frozen=True)
class Degradation:
    """How a page is worn. degrees: against the clock. blur: standard deviation in pixels. paper and noise: shades of
    255. quality: JPEG's, None for PNG."""

    degrees: float = 0.0
    blur: float = 0.0
    paper: float = 0.0
    noise: float = 0.0
    quality: int | None = None

    @property
    def suffix(self) -> str:
        return "png" if self.quality is None else "jpg"


def choose(rng: random.Random, level: str) -> Degradation:
    """A page's wear. level: `none`, `light` or `strong`."""
    most = LEVELS[level]
    if most is None:
        return Degradation()
    often = lambda share: rng.random() if rng.random() < share else 0.0  # noqa: E731
    return Degradation(
        degrees=most.degrees * (2 * often(0.5) - 1) if rng.random() < 0.5 else 0.0,
        blur=most.blur * often(0.5),
        paper=most.paper * often(0.6),
        noise=most.noise * often(0.5),
        quality=rng.randint(most.quality, 95),
    )


LEVELS: dict[str, Degradation | None] = {
    "none": None,
    "light": Degradation(degrees=0.6, blur=0.6, paper=16, noise=6, quality=70),
    "strong": Degradation(degrees=2.0, blur=1.2, paper=50, noise=18, quality=25),
}
"""The most of each; of quality the least."""


def apply(image: Image.Image, wear: Degradation, seed: list[int]) -> Image.Image:
    """A grey page as it looks after `wear`; texture and noise are drawn from `seed`."""
    rng = np.random.default_rng(seed)
    if wear.degrees:
        image = image.rotate(wear.degrees, Image.Resampling.BILINEAR, fillcolor=WHITE)
    if wear.blur:
        image = image.filter(ImageFilter.GaussianBlur(wear.blur))
    if wear.paper:
        image = ImageChops.multiply(image, _paper(rng, image.size, wear.paper))
    if wear.noise:
        image = ImageChops.add(image, _noise(rng, image.size, wear.noise), offset=-_GREY)
    return image


def encoded(image: Image.Image, wear: Degradation) -> bytes:
    file = io.BytesIO()
    if wear.quality is None:
        image.save(file, "PNG", compress_level=1)
    else:
        image.save(file, "JPEG", quality=wear.quality)
    return file.getvalue()


def _paper(rng: np.random.Generator, size: tuple[int, int], depth: float) -> Image.Image:
    """Stains as large as a hand, and folds of a few pixels, down to `depth` shades below white."""
    coarse, fine = 0.7 * depth * rng.uniform(0, 1, (6, 6)), 0.3 * depth * rng.uniform(0, 1, (96, 96))
    stains = Image.fromarray((WHITE - depth * 0.7 * coarse / 1.3).astype(np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    folds = Image.fromarray((WHITE - depth * 0.3 * fine).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    return ImageChops.multiply(stains, folds)


def _noise(rng: np.random.Generator, size: tuple[int, int], deviation: float) -> Image.Image:
    tile = np.clip(rng.normal(_GREY, deviation, (_TILE, _TILE)), 0, WHITE).astype(np.uint8)
    repeats = (-(-size[1] // _TILE), -(-size[0] // _TILE))
    return Image.fromarray(np.tile(tile, repeats)[: size[1], : size[0]])
