"""Random affine and elastic distortion, for handwriting. No torch: data tools and data workers use it."""

import numpy as np

from mmchat.extras import require

SMOOTHNESS = 5.0
"""Standard deviation in pixels of the displacement's Gaussian filter at side 32 (Simard et al. 2003: 4 at side 29)."""


def elastic_warp(image: np.ndarray, draw: np.random.Generator, strength: float) -> np.ndarray:
    """Rotate, scale, shear, shift and elastically distort an image at random. Pixels from outside are black.

    Args:
        image: float32[size, size] or float32[size, size, C].
        draw: Random generator.
        strength: 1 rotates and shears by up to 12 degrees, scales by up to 15 % and shifts by up to 9 %.

    Returns:
        An image of the same shape.
    """
    require("scipy")
    from scipy.ndimage import gaussian_filter, map_coordinates

    size = len(image)
    rotation, shear = np.radians(draw.uniform(-12, 12, 2)) * strength
    scale_x, scale_y = 1 + draw.uniform(-0.15, 0.15, 2) * strength
    rotate = np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    matrix = rotate @ np.array([[scale_y, 0], [np.tan(shear), scale_x]])
    middle = (size - 1) / 2
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij")).reshape(2, -1) - middle
    shift = draw.uniform(-0.09, 0.09, (2, 1)) * size * strength
    sigma = SMOOTHNESS * size / 32
    displacement = gaussian_filter(draw.uniform(-1, 1, (2, size, size)), (0, sigma, sigma)).reshape(2, -1)
    displacement *= draw.uniform(0, 0.06) * size * strength / np.abs(displacement).max()
    coordinates = (matrix @ grid + middle + shift + displacement).reshape(2, size, size)
    if image.ndim == 2:
        return map_coordinates(image, coordinates, order=1, mode="constant")
    channels = np.moveaxis(image, -1, 0)
    return np.stack([map_coordinates(channel, coordinates, order=1, mode="constant") for channel in channels], axis=-1)
