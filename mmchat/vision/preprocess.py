"""A picture becomes what a tower was trained to see. PIL and NumPy only: runs in data workers.

Split in two so that the wide part stays cheap: geometry on one picture gives uint8, and `normalise`
turns a whole batch of uint8 into floats through a 256-entry table, which is exact because a byte has
only 256 values.
"""

import numpy as np
from PIL import Image

from mmchat.vision.spec import TowerSpec

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess(image: Image.Image, spec: TowerSpec) -> np.ndarray:
    """Fit one RGB picture to the tower's square: uint8[3, image_size, image_size].

    Bit-equal to transformers' PIL image processors (CLIP, SigLIP) and to LLaVA's `pad` before normalising.
    """
    size = spec.image_size
    how = spec.preprocessing
    resample = _RESAMPLING[how.resample]
    if how.fit == "shortest-edge-crop":
        width, height = image.size
        short, long = min(width, height), max(width, height)
        scaled = int(size * long / short)  # truncated, as CLIPImageProcessor does
        image = image.resize((size, scaled) if width <= height else (scaled, size), resample)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    else:
        if how.fit == "pad":
            image = pad_to_square(image, tuple(int(channel * 255) for channel in how.mean))
        image = image.resize((size, size), resample)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Centre the picture on a square of `colour` (LLaVA, llava/mm_utils.py `expand2square`)."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def normalise(pixels: np.ndarray, spec: TowerSpec) -> np.ndarray:
    """Bytes to the tower's input range: uint8[B, 3, H, W] -> float32[B, 3, H, W], `(x/255 - mean) / std`.

    Rounded step by step like transformers (float64 product, float32 afterwards), so results are bit-equal.
    """
    unit = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    out = np.empty(pixels.shape, dtype=np.float32)
    for channel, (mean, std) in enumerate(zip(spec.preprocessing.mean, spec.preprocessing.std, strict=True)):
        table = (unit - np.float32(mean)) / np.float32(std)
        np.take(table, pixels[:, channel], out=out[:, channel])
    return out
