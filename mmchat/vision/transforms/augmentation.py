"""SimCLR's augmentation (Chen et al. 2020, arXiv:2002.05709, appendix A) and CLIP's random square crop.

PIL and NumPy only: runs in data workers.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from pydantic import Field

from mmchat.settings import settings

ASPECT = (3 / 4, 4 / 3)
TRIES = 10
BLUR_SIGMA = (0.1, 2.0)
JITTER, HUE = 0.8, 0.2
"""Largest change at strength 1: of brightness, contrast and saturation; of hue as a fraction of the circle."""
JITTER_PROBABILITY = 0.8


@settings
class AugmentationConfig:
    """Settings of `random_view`."""

    crop_area: tuple[float, float] = Field(
        (0.08, 1.0), description="smallest and largest fraction of an image's area in a view"
    )
    warp: float = Field(
        0.0,
        ge=0,
        description="strength of random rotation, scaling, shear, shift and elastic distortion; try 1 for handwriting",
    )
    flip: float = Field(
        0.5, ge=0, le=1, description="probability of a mirrored view; 0 if mirroring changes the meaning"
    )
    jitter: float = Field(
        1.0, ge=0, le=1, description="strength of colour jitter: brightness, contrast, saturation and hue"
    )
    grayscale: float = Field(0.2, ge=0, le=1, description="probability of a gray view")
    blur: float = Field(0.5, ge=0, le=1, description="probability of a blurred view")


def random_view(image: Image.Image, size: int, config: AugmentationConfig, draw: np.random.Generator) -> Image.Image:
    """A random view for SimCLR.

    Args:
        image: An RGB image.
        size: Side of the view in pixels.
        config: What is changed, and how much.
        draw: Random generator.

    Returns:
        An RGB image of `size` x `size`.
    """
    view = random_resized_crop(image, size, config.crop_area, draw)
    if config.warp:
        from mmchat.vision.transforms.elastic import elastic_warp  # imports scipy; the config must not

        view = Image.fromarray(elastic_warp(np.asarray(view, np.float32), draw, config.warp).astype(np.uint8))
    if draw.random() < config.flip:
        view = ImageOps.mirror(view)
    if draw.random() < JITTER_PROBABILITY:
        view = colour_jitter(view, config.jitter, draw)
    if draw.random() < config.grayscale:
        view = view.convert("L").convert("RGB")
    if draw.random() < config.blur:
        view = view.filter(ImageFilter.GaussianBlur(draw.uniform(*BLUR_SIGMA)))
    return view


def random_resized_crop(
    image: Image.Image, size: int, area: tuple[float, float], draw: np.random.Generator
) -> Image.Image:
    """Resize a crop of random area and aspect ratio to a square; the centre crop if no draw fits into the image."""
    width, height = image.size
    for _ in range(TRIES):
        pixels = width * height * draw.uniform(*area)
        aspect = np.exp(draw.uniform(*np.log(ASPECT)))
        across, down = round((pixels * aspect) ** 0.5), round((pixels / aspect) ** 0.5)
        if 0 < across <= width and 0 < down <= height:
            left, top = draw.integers(width - across + 1), draw.integers(height - down + 1)
            box = (int(left), int(top), int(left) + across, int(top) + down)
            return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def random_square_crop(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """The largest square crop at a random place: the only augmentation in CLIP's training (arXiv:2103.00020,
    section 2.3)."""
    side = min(image.size)
    left, top = (int(draw.integers(length - side + 1)) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def colour_jitter(image: Image.Image, strength: float, draw: np.random.Generator) -> Image.Image:
    """Change brightness, contrast, saturation and hue in random order."""
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, None]
    for enhancer in (enhancers[number] for number in draw.permutation(len(enhancers))):
        if enhancer is None:
            image = shift_hue(image, draw.uniform(-1, 1) * HUE * strength)
        else:
            image = enhancer(image).enhance(1 + draw.uniform(-1, 1) * JITTER * strength)
    return image


def shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """Rotate the hue by a fraction of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(shade + round(256 * turns)) % 256 for shade in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
