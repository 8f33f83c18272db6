"""Degradation of printed and scanned pages: skew, blur, paper texture, noise, JPEG."""

import io
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter

WHITE = 255
_GREY = 128
"""Mean of the noise; it is subtracted again, so that the page keeps its brightness."""
_TILE = 512
"""Side of the noise tile, which is repeated over the page."""


@dataclass(frozen=True)
class Degradation:
    """Parameters of one page.

    Attributes:
        degrees: counter-clockwise rotation.
        blur: standard deviation in pixels.
        paper: depth of the paper texture in grey levels of 255.
        noise: standard deviation in grey levels of 255.
        quality: JPEG quality; None writes PNG.
    """

    degrees: float = 0.0
    blur: float = 0.0
    paper: float = 0.0
    noise: float = 0.0
    quality: int | None = None

    @property
    def suffix(self) -> str:
        return "png" if self.quality is None else "jpg"


def sample_degradation(rng: random.Random, level: str) -> Degradation:
    """Random parameters of a page. level: `none`, `light` or `strong`."""
    limits = LEVELS[level]
    if limits is None:
        return Degradation()
    sometimes = lambda share: rng.random() if rng.random() < share else 0.0  # noqa: E731
    return Degradation(
        degrees=limits.degrees * (2 * sometimes(0.5) - 1) if rng.random() < 0.5 else 0.0,
        blur=limits.blur * sometimes(0.5),
        paper=limits.paper * sometimes(0.6),
        noise=limits.noise * sometimes(0.5),
        quality=rng.randint(limits.quality, 95),
    )


LEVELS: dict[str, Degradation | None] = {
    "none": None,
    "light": Degradation(degrees=0.6, blur=0.6, paper=16, noise=6, quality=70),
    "strong": Degradation(degrees=2.0, blur=1.2, paper=50, noise=18, quality=25),
}
"""Maximum of each parameter; of quality the minimum."""


def degrade(image: Image.Image, degradation: Degradation, seed: list[int]) -> Image.Image:
    """Degrade a grey page; `seed` determines texture and noise."""
    rng = np.random.default_rng(seed)
    if degradation.degrees:
        image = image.rotate(degradation.degrees, Image.Resampling.BILINEAR, fillcolor=WHITE)
    if degradation.blur:
        image = image.filter(ImageFilter.GaussianBlur(degradation.blur))
    if degradation.paper:
        image = ImageChops.multiply(image, _paper(rng, image.size, degradation.paper))
    if degradation.noise:
        image = ImageChops.add(image, _noise(rng, image.size, degradation.noise), offset=-_GREY)
    return image


def encode_image(image: Image.Image, quality: int | None = None) -> bytes:
    """PNG, or JPEG if a quality is given."""
    file = io.BytesIO()
    if quality is None:
        image.save(file, "PNG", compress_level=1)
    else:
        image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _paper(rng: np.random.Generator, size: tuple[int, int], depth: float) -> Image.Image:
    """Large stains and creases of a few pixels, at most `depth` grey levels below white."""
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
