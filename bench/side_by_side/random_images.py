"""Random images."""

import numpy as np
from PIL import Image


def draw_clouds(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """An image of smooth colours. size: width and height."""
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
