"""`mmchat vision inspect`: what a tower is, what it sees of an image, and what it makes of that."""

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
"""Pixels that the longer side of a shown view has at least, so that a person sees something."""
CLIPPED = 1.0
"""Per cent of the patches that are beyond either end of a colour's scale: a few outliers (arXiv:2309.16588) would leave
all others grey."""
CAPTION_HEIGHT, MARGIN = 28, 8

FIT_WORDS = {
    "squash": "resized to {size} x {size}, whatever its proportions",
    "pad": "padded to a square with the mean colour, then resized to {size} x {size}",
    "shortest-edge-crop": "its short side resized to {edge}, then the {size} x {size} in the middle",
    "tiles": "cut into as many squares of {size} x {size} as suit its size, and the whole once more",
    "native": "resized to nearly {patches} patches, its proportions kept up to a patch",
    "longest-edge-pad": "its long side resized to {size}, padded right and below with the mean colour",
}


@dataclass(frozen=True)
class Inspection:
    """Sizes in pixels. image_size, tokens: as in `TowerSpec`. width: of the features. layer: as in `TowerConfig`; None:
    the tower is no row of blocks.

    parameters_run: how many of the parameters the features need. dtypes: of the weights, as they were opened.
    """

    source: str
    layout: str
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
    """tower: as `load_tower` opened it from `source`."""
    idle = sum(parameter.numel() for parameter in tower.idle_parameters())
    parameters = sum(parameter.numel() for parameter in tower.parameters())
    row = tower if isinstance(tower, BlockTower) else None
    spec = tower.spec
    return Inspection(
        source=source,
        layout=_layout(source, trust_torchscript),
        family=tower.config.family,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        tokens=spec.tokens,
        width=spec.dim,
        class_token=tower.config.class_token,
        layer=tower.config.layer if row else None,
        final_norm=tower.config.final_norm,
        blocks=len(row.blocks) if row else None,
        blocks_run=row.blocks_to_run if row else None,
        parameters=parameters,
        parameters_run=parameters - idle,
        dtypes=tuple(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in tower.parameters()})),
        preprocessing=spec.preprocessing,
    )


def _layout(source: str, trust_torchscript: bool) -> str:
    if source.endswith(".json"):
        return "TowerConfig (its weights are random)"
    return recognise_format(open_weight_files(source, trust_torchscript=trust_torchscript)).name


def in_words(how: Preprocessing, size: int) -> list[str]:
    """What happens to an image before a tower of `size` pixels sees it."""
    size_words = {"size": size, "edge": round(size / how.crop_fraction), "patches": how.max_patches}
    shift, scale = (", ".join(f"{value:.4g}" for value in values) for values in (how.mean, how.std))
    return [
        f"{FIT_WORDS[how.fit].format(**size_words)} ({how.resample})",
        f"red, green, blue from 0 to 1, minus {shift}, divided by {scale}",
    ]


def seen_views(image: Image.Image, spec: TowerSpec) -> np.ndarray:
    """The tower's input for an image, float32[squares, 3, S, S]; of native aspect the whole, float32[1, 3, H, W]."""
    views = normalise(preprocess(image, spec), spec)
    grid = spec.grid(image.size)
    return views if grid is None else image_from_patches(views, grid)[None]


def as_images(views: np.ndarray, how: Preprocessing) -> list[Image.Image]:
    """The tower's input as a person sees it: normalisation undone."""
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (how.mean, how.std))
    shades = np.rint((views * std + mean) * 255).clip(0, 255).astype(np.uint8)
    return [Image.fromarray(view.transpose(1, 2, 0)) for view in shades]


@torch.no_grad()
def patch_features(tower: VisionTower, image: Image.Image) -> torch.Tensor:
    """Of what `seen_views` shows, float32[squares, rows, columns, D], without class tokens. `tower` is turned to fp32
    and evaluation mode."""
    tower, spec = tower.float().eval(), tower.spec
    views = torch.from_numpy(normalise(preprocess(image, spec), spec))
    if grid := spec.grid(image.size):
        return tower(views, grids=[grid]).patches.view(1, *grid, spec.dim)
    patches = tower(views).patches[:, int(tower.config.class_token) :]
    return patches.unflatten(1, (isqrt(patches.shape[1]), -1))


def principal_components(features: torch.Tensor, count: int = 3) -> tuple[torch.Tensor, float]:
    """The first components of all patches together, float64[..., count], and their share of the variance.

    Signs are such that the channel that weighs most in a component weighs positively; a component that the patches do
    not have (fewer channels, or all alike) is 0.
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
    """float[squares, rows, columns, 3] -> uint8, each component from dark to bright over all views."""
    values = components.numpy()
    low, high = np.percentile(values, [CLIPPED, 100 - CLIPPED], axis=(0, 1, 2))
    spread = np.where(high > low, high - low, 1)
    return np.rint(((values - low) / spread).clip(0, 1) * 255).astype(np.uint8)


def write_images(tower: VisionTower, image: Image.Image, out: Path) -> list[Path]:
    """What the tower sees of an image (`seen.png`), the three first principal components of its patch features as red,
    green and blue (`features.png`), and both side by side (`inspect.png`), in the folder `out`."""
    views = as_images(seen_views(image, tower.spec), tower.spec.preprocessing)
    features = patch_features(tower, image)
    components, share = principal_components(features)
    # By whole pixels and patches: nothing is smoothed that the tower has not.
    width, height = views[0].size
    times = -(-SHOWN_SIDE // max(width, height))
    shown = (times * width, times * height)
    seen = [_enlarged(view, shown) for view in views]
    coloured = [_enlarged(Image.fromarray(view), shown) for view in as_colours(components)]
    _, rows, columns, _ = features.shape
    told = (
        f"what the tower sees: {width} x {height}" + (f", {len(seen)} views" if len(seen) > 1 else ""),
        f"its features: {columns} x {rows}, {share:.0%} of their variance",
    )
    seen_sheet, coloured_sheet = _sheet(seen), _sheet(coloured)
    images = {
        "seen.png": seen_sheet,
        "features.png": coloured_sheet,
        "inspect.png": _side_by_side([seen_sheet, coloured_sheet], told),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, ref in images.items():
        ref.save(out / name)
    return [out / name for name in images]


def _enlarged(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.NEAREST)


def _sheet(images: list[Image.Image]) -> Image.Image:
    """Of one size, in reading order, in a block about as wide as high."""
    columns = isqrt(len(images) - 1) + 1
    right, down = (side + MARGIN for side in images[0].size)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * right - MARGIN, rows * down - MARGIN), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * right, number // columns * down))
    return sheet


def _side_by_side(sheets: list[Image.Image], captions: tuple[str, ...]) -> Image.Image:
    """Of one size, each under its caption."""
    width, height = sheets[0].size
    page = Image.new("RGB", (len(sheets) * (width + MARGIN) + MARGIN, height + CAPTION_HEIGHT + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    for number, (sheet, caption) in enumerate(zip(sheets, captions, strict=True)):
        left = MARGIN + number * (width + MARGIN)
        draw.text((left, CAPTION_HEIGHT // 2), caption, "black", ImageFont.load_default(16), anchor="lm")
        page.paste(sheet, (left, CAPTION_HEIGHT))
    return page
