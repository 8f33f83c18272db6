"""An image bent at random, as handwriting differs from hand to hand. No torch here: data tools and workers use it."""

import numpy as np

from mmchat.extras import require

SMOOTHNESS = 5.0
"""Pixels of a side of 32 over which an elastic bend keeps its direction (Simard et al. 2003 use 4 of 29)."""


def elastic_warp(image: np.ndarray, draw: np.random.Generator, strength: float) -> np.ndarray:
    """Turned, scaled, slanted, moved and elastically bent at random, each a little: float32[size, size] or, with
    channels, [size, size, C]. What comes in from outside is black.

    strength: 1 turns by 12 degrees at most, scales by 15 %, moves by 9 %.
    """
    require("scipy")
    from scipy.ndimage import gaussian_filter, map_coordinates

    size = len(image)
    turn, slant = np.radians(draw.uniform(-12, 12, 2)) * strength
    scale_x, scale_y = 1 + draw.uniform(-0.15, 0.15, 2) * strength
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = turned @ np.array([[scale_y, 0], [np.tan(slant), scale_x]])
    middle = (size - 1) / 2
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij")).reshape(2, -1) - middle
    moved = draw.uniform(-0.09, 0.09, (2, 1)) * size * strength
    sigma = SMOOTHNESS * size / 32
    bend = gaussian_filter(draw.uniform(-1, 1, (2, size, size)), (0, sigma, sigma)).reshape(2, -1)
    bend *= draw.uniform(0, 0.06) * size * strength / np.abs(bend).max()
    where = (matrix @ grid + middle + moved + bend).reshape(2, size, size)
    if image.ndim == 2:
        return map_coordinates(image, where, order=1, mode="constant")
    channels = np.moveaxis(image, -1, 0)
    return np.stack([map_coordinates(channel, where, order=1, mode="constant") for channel in channels], axis=-1)
