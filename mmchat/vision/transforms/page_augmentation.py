"""Vary's augmentation of pages (Ucas-HaoranWei/Vary, vary/model/plug/transforms.py `train_transform`).

Each augmentation has a small probability; two of three images are unchanged. Probabilities and ranges are the
original's; warps are computed on a mesh. PIL and NumPy only: runs in data workers.
"""

import io
from collections.abc import Callable
from math import cos, radians, sin, tan

import numpy as np
from PIL import Image, ImageFilter

WHITE = (255, 255, 255)
BLUR_SIGMA = 0.8
"""Of OpenCV's 3-pixel kernel."""
GRID_CELLS, GRID_STRETCH = 5, 0.05
ELASTIC_CELL, ELASTIC_SIGMA = 24, 0.68
"""In pixels. The original's displacement (alpha 50, filtered with sigma 12) is correlated over two sigma, and its
standard deviation is 50 / sqrt(3) / (2 sqrt(pi) 12)."""


def augment_page(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Augment an RGB image at random; mostly it is returned unchanged. The size stays the same."""
    for probability, augmentation in AUGMENTATIONS:
        if draw.random() < probability:
            image = augmentation(image, draw)
    return image


def dilate_or_erode(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Make dark strokes a pixel wider or narrower: the minimum or maximum of 2 x 2 pixels."""
    choose = (np.minimum, np.maximum)[draw.integers(2)]
    padded = np.pad(np.asarray(image), ((1, 0), (1, 0), (0, 0)), mode="edge")
    across = choose(padded[:, 1:], padded[:, :-1])
    return Image.fromarray(choose(across[1:], across[:-1]))


def shear(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Shear by up to 3 degrees along each axis."""
    across, down = tan(radians(draw.uniform(0, 3))), tan(radians(draw.uniform(-3, 0)))
    return affine_about_centre(image, [[1, across], [down, 1]], (0, 0))


def shift_scale_rotate(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Shift right and down, scale and rotate."""
    shift = draw.uniform(0, 0.04) * image.width, draw.uniform(0, 0.03) * image.height
    scale, angle = 1 + draw.uniform(-0.15, 0.03), radians(draw.uniform(-2, 2))
    turn = [[cos(angle) / scale, sin(angle) / scale], [-sin(angle) / scale, cos(angle) / scale]]
    return affine_about_centre(image, turn, shift)


def grid_distortion(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Make columns and rows of a grid wider or narrower."""
    lines = []
    for length in image.size:
        cells = length / GRID_CELLS * (1 + draw.uniform(-GRID_STRETCH, GRID_STRETCH, GRID_CELLS))
        lines.append(np.concatenate([[0], np.cumsum(cells)]))
    return warp_mesh(image, np.stack(np.meshgrid(*lines), axis=-1))


def elastic_transform(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Shift by up to 5 pixels and displace locally by less than one."""
    across, down = (max(1, round(length / ELASTIC_CELL)) for length in image.size)
    lines = np.linspace(0, image.width, across + 1), np.linspace(0, image.height, down + 1)
    mesh = np.stack(np.meshgrid(*lines), axis=-1) - draw.uniform(0, 5, 2)
    return warp_mesh(image, mesh + draw.normal(0, ELASTIC_SIGMA, mesh.shape))


def brightness_contrast(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Change contrast and brightness by up to 10 %."""
    contrast, brightness = 1 + draw.uniform(-0.1, 0.1), 255 * draw.uniform(-0.1, 0.1)
    return image.point([min(max(value * contrast + brightness, 0), 255) for value in range(256)] * 3)


def jpeg_compression(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """JPEG of quality 95 to 100."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(draw.integers(95, 101)))
    return Image.open(file).convert("RGB")


def gaussian_noise(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Add Gaussian noise with a variance of up to 20."""
    pixels = np.asarray(image) + draw.normal(0, draw.uniform(0, 20) ** 0.5, (image.height, image.width, 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def gaussian_blur(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Blur with `BLUR_SIGMA`."""
    return image.filter(ImageFilter.GaussianBlur(BLUR_SIGMA))


AUGMENTATIONS: tuple[tuple[float, Callable[[Image.Image, np.random.Generator], Image.Image]], ...] = (
    (0.02, dilate_or_erode),
    (0.03, shear),
    (0.03, shift_scale_rotate),
    (0.04, grid_distortion),
    (0.04, elastic_transform),
    (0.03, brightness_contrast),
    (0.07, jpeg_compression),
    (0.08, gaussian_noise),
    (0.03, gaussian_blur),
)
"""(probability, augmentation), in order of application."""


def affine_about_centre(image: Image.Image, matrix: list[list[float]], shift: tuple[float, float]) -> Image.Image:
    """Affine transform about the centre: output position p shows input matrix (p - centre - shift) + centre. Outside is
    white."""
    centre = np.array(image.size) / 2
    offset = centre - np.array(matrix) @ (centre + shift)
    (a, b), (d, e) = matrix
    values = (a, b, offset[0], d, e, offset[1])
    return image.transform(image.size, Image.Transform.AFFINE, values, Image.Resampling.BILINEAR, fillcolor=WHITE)


def warp_mesh(image: Image.Image, corners: np.ndarray) -> Image.Image:
    """Warp by a mesh of equal cells.

    Args:
        image: The image.
        corners: float[rows + 1, columns + 1, 2]: x and y in `image` shown at the corners of the cells.
    """
    rows, columns = (count - 1 for count in corners.shape[:2])
    xs = np.linspace(0, image.width, columns + 1).round().astype(int)
    ys = np.linspace(0, image.height, rows + 1).round().astype(int)
    cells = []
    for row in range(rows):
        for column in range(columns):
            box = (int(xs[column]), int(ys[row]), int(xs[column + 1]), int(ys[row + 1]))
            neighbours = ((row, column), (row + 1, column), (row + 1, column + 1), (row, column + 1))
            cells.append((box, [float(value) for corner in neighbours for value in corners[corner]]))
    return image.transform(image.size, Image.Transform.MESH, cells, Image.Resampling.BILINEAR, fillcolor=WHITE)
