"""`mmchat vision inspect`: facts about a tower, the views that it sees of an image, and their features."""

from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mmchat.vision.block_tower import BlockTower
from mmchat.vision.loading import open_weight_files, recognise_format
from mmchat.vision.spec import Preprocessing, TowerSpec
from mmchat.vision.tower import VisionTower
from mmchat.vision.transforms.preprocess import image_from_patches, normalise, preprocess

SHOWN_SIDE = 448
"""Smallest longer side of a displayed view in pixels."""
CLIPPED = 1.0
"""Percentage of patches clipped at either end of a colour scale. A few outliers (arXiv:2309.16588) would otherwise make
all others gray."""
CAPTION_HEIGHT, MARGIN = 28, 8

FIT_DESCRIPTIONS = {
    "squash": "resized to {size} x {size}, whatever its aspect ratio",
    "pad": "padded to a square with the mean colour, then resized to {size} x {size}",
    "shortest-edge-crop": "short side resized to {edge}, then the centre {size} x {size} cropped",
    "tiles": "cut into a grid of squares of {size} x {size} that suits its size, and the whole as a thumbnail",
    "anyres": "resized to {size} x {size}; and resized into a grid of such squares, padded with black and cut",
    "split": "resized to a multiple of {size}, cut into squares of {size} x {size}, and the whole as one more",
    "native": "resized to nearly {patches} patches, aspect ratio kept up to a patch",
    "longest-edge-pad": "long side resized to {size}, padded right and below with the mean colour",
}


@dataclass(frozen=True)
class Inspection:
    """Facts about a tower. Sizes in pixels.

    Attributes:
        source: Where it was opened from.
        format: Name of its checkpoint format.
        family: Key of `FAMILIES`.
        image_size: As in `TowerSpec`.
        patch_size: As in `TowerSpec`.
        tokens: As in `TowerSpec`.
        width: Of a feature.
        class_token: As in `TowerConfig`.
        layer: As in `TowerConfig`; None if the tower is not a sequence of blocks.
        final_norm: As in `TowerConfig`.
        blocks: Number of blocks, or None.
        blocks_run: Number of blocks that the features need, or None.
        parameters: Number of parameters.
        parameters_run: Number of parameters that the features need.
        dtypes: Of the weights on disk.
        preprocessing: As in `TowerSpec`.
    """

    source: str
    format: str
    family: str
    image_size: int
    patch_size: int
    tokens: int
    width: int
    class_token: bool
    layer: int | tuple[int, ...] | None
    final_norm: bool
    blocks: int | None
    blocks_run: int | None
    parameters: int
    parameters_run: int
    dtypes: tuple[str, ...]
    preprocessing: Preprocessing

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect_tower(source: str, tower: VisionTower, trust_torchscript: bool = False) -> Inspection:
    """Collect facts about a tower.

    Args:
        source: Where `load_tower` opened it from.
        tower: The tower.
        trust_torchscript: See `load_tower`.
    """
    idle = sum(parameter.numel() for parameter in tower.idle_parameters())
    parameters = sum(parameter.numel() for parameter in tower.parameters())
    block_tower = tower if isinstance(tower, BlockTower) else None
    spec = tower.spec
    return Inspection(
        source=source,
        format=_format_name(source, trust_torchscript),
        family=tower.config.family,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        tokens=spec.tokens,
        width=spec.dim,
        class_token=tower.config.class_token,
        layer=tower.config.layer if block_tower else None,
        final_norm=tower.config.final_norm,
        blocks=len(block_tower.blocks) if block_tower else None,
        blocks_run=block_tower.blocks_to_run if block_tower else None,
        parameters=parameters,
        parameters_run=parameters - idle,
        dtypes=tuple(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in tower.parameters()})),
        preprocessing=spec.preprocessing,
    )


def _format_name(source: str, trust_torchscript: bool) -> str:
    if source.endswith(".json"):
        return "TowerConfig (its weights are random)"
    return recognise_format(open_weight_files(source, trust_torchscript=trust_torchscript)).name


def describe(preprocessing: Preprocessing, size: int) -> list[str]:
    """Lines that describe the preprocessing for a tower with image size `size`."""
    edge = round(size / preprocessing.crop_fraction)
    geometry = FIT_DESCRIPTIONS[preprocessing.fit].format(size=size, edge=edge, patches=preprocessing.max_patches)
    statistics = (preprocessing.mean, preprocessing.std)
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in statistics)
    return [
        f"{geometry} ({preprocessing.resample})",
        f"red, green, blue from 0 to 1, minus {mean}, divided by {std}",
    ]


def seen_views(image: Image.Image, spec: TowerSpec) -> np.ndarray:
    """The tower's input for an image: float32[squares, 3, S, S]; for fit native float32[1, 3, H, W]."""
    views = normalise(preprocess(image, spec), spec)
    grid = spec.grid(image.size)
    return views if grid is None else image_from_patches(views, grid)[None]


def as_images(views: np.ndarray, preprocessing: Preprocessing) -> list[Image.Image]:
    """Undo the normalisation of views."""
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    pixels = np.rint((views * std + mean) * 255).clip(0, 255).astype(np.uint8)
    return [Image.fromarray(view.transpose(1, 2, 0)) for view in pixels]


@torch.no_grad()
def patch_features(tower: VisionTower, image: Image.Image) -> torch.Tensor:
    """Patch features of the views that `seen_views` shows, without class tokens: float32[squares, rows, columns, D].

    Converts `tower` to fp32 and evaluation mode.
    """
    tower, spec = tower.float().eval(), tower.spec
    views = torch.from_numpy(normalise(preprocess(image, spec), spec))
    if grid := spec.grid(image.size):
        return tower(views, grids=[grid]).patches.view(1, *grid, spec.dim)
    patches = tower(views).patches[:, int(tower.config.class_token) :]
    return patches.unflatten(1, (isqrt(patches.shape[1]), -1))


def principal_components(features: torch.Tensor, count: int = 3) -> tuple[torch.Tensor, float]:
    """Principal components of all patches together.

    Args:
        features: float[..., D].
        count: Number of components.

    Returns:
        float64[..., count], and the fraction of the variance that they explain. The channel with the largest weight in
        a component has a positive sign. Components that do not exist (fewer channels, identical patches) are 0.
    """
    rows = features.double().flatten(0, -2)
    u, strength, directions = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    heaviest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).T
    found = (u * strength * heaviest.sign())[:, :count]
    found = torch.nn.functional.pad(found, (0, count - found.shape[1]))
    variance = strength.square()
    share = (variance[:count].sum() / variance.sum()).item() if variance.sum() > 0 else 0.0
    return found.unflatten(0, features.shape[:-1]), share


def as_colours(components: torch.Tensor) -> np.ndarray:
    """float[squares, rows, columns, 3] -> uint8; the range of each component over all views becomes 0 to 255."""
    values = components.numpy()
    low, high = np.percentile(values, [CLIPPED, 100 - CLIPPED], axis=(0, 1, 2))
    spread = np.where(high > low, high - low, 1)
    return np.rint(((values - low) / spread).clip(0, 1) * 255).astype(np.uint8)


def write_images(tower: VisionTower, image: Image.Image, out: Path) -> list[Path]:
    """Write three images that show what a tower sees.

    Args:
        tower: The tower; converted to fp32 and evaluation mode.
        image: An RGB image.
        out: The folder.

    Returns:
        `seen.png`, the views; `features.png`, the first three principal components of the patch features as red, green
        and blue; `inspect.png`, both side by side.
    """
    views = as_images(seen_views(image, tower.spec), tower.spec.preprocessing)
    features = patch_features(tower, image)
    components, share = principal_components(features)
    # Integer scaling, so that nothing is smoothed.
    width, height = views[0].size
    factor = -(-SHOWN_SIDE // max(width, height))
    size = (factor * width, factor * height)
    seen = [_enlarged(view, size) for view in views]
    coloured = [_enlarged(Image.fromarray(view), size) for view in as_colours(components)]
    _, rows, columns, _ = features.shape
    captions = (
        f"what the tower sees: {width} x {height}" + (f", {len(seen)} views" if len(seen) > 1 else ""),
        f"its features: {columns} x {rows}, {share:.0%} of their variance",
    )
    seen_sheet, coloured_sheet = _sheet(seen), _sheet(coloured)
    images = {
        "seen.png": seen_sheet,
        "features.png": coloured_sheet,
        "inspect.png": _side_by_side([seen_sheet, coloured_sheet], captions),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, sheet in images.items():
        sheet.save(out / name)
    return [out / name for name in images]


def _enlarged(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.NEAREST)


def _sheet(images: list[Image.Image]) -> Image.Image:
    """Lay out images of one size in reading order on a nearly square grid."""
    columns = isqrt(len(images) - 1) + 1
    right, down = (side + MARGIN for side in images[0].size)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * right - MARGIN, rows * down - MARGIN), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * right, number // columns * down))
    return sheet


def _side_by_side(sheets: list[Image.Image], captions: tuple[str, ...]) -> Image.Image:
    """Lay out sheets of one size side by side below their captions."""
    width, height = sheets[0].size
    page = Image.new("RGB", (len(sheets) * (width + MARGIN) + MARGIN, height + CAPTION_HEIGHT + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    for number, (sheet, caption) in enumerate(zip(sheets, captions, strict=True)):
        left = MARGIN + number * (width + MARGIN)
        draw.text((left, CAPTION_HEIGHT // 2), caption, "black", ImageFont.load_default(16), anchor="lm")
        page.paste(sheet, (left, CAPTION_HEIGHT))
    return page
