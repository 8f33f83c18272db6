"""`MMChatImageProcessor`: images become the pixel values of every tower."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images

from mmchat.errors import UserError
from mmchat.images import as_rgb, load_image
from mmchat.vision import Grid, ImageLayout, Size, TowerSpec, normalise, preprocess


class MMChatImageProcessor(BaseImageProcessor):
    """One image processor for all towers. Each tower preprocesses the same image in its own way.

    Args:
        towers: One `TowerSpec.to_dict()` per tower, in the order of the model.
        **kwargs: Passed to transformers' `BaseImageProcessor`.
    """

    model_input_names = ["pixel_values", "grids"]

    def __init__(self, towers: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.towers = towers or []

    @property
    def specs(self) -> list[TowerSpec]:
        """The specs of the towers, in the order of the model."""
        return [TowerSpec.from_dict(tower) for tower in self.towers]

    @property
    def views_vary(self) -> bool:
        """Whether the number of views of an image depends on its size."""
        return any(spec.native or spec.preprocessing.tiling for spec in self.specs)

    def layouts(self, sizes: Sequence[Size], tokens_per_view: int) -> list[ImageLayout]:
        """Views and slots of the images of one conversation, the same for all towers; see `TowerSpec.layouts`."""
        return self.specs[0].layouts(sizes, tokens_per_view) if sizes else []

    def views(self, size: Size) -> int:
        """Number of views of an image of this size that is alone in its conversation, the same for all towers."""
        return self.specs[0].views(size)

    def grids(self, sizes: Iterable[Size]) -> list[Grid] | None:
        """Rows and columns of patches of images of these sizes, or None if the towers do not have native aspect."""
        spec = self.specs[0]
        return [spec.grid(size) for size in sizes] if spec.native else None

    @property
    def fewest_views(self) -> int:
        """Smallest number of views of any image."""
        tiling = self.specs[0].preprocessing.tiling
        return 1 if tiling is None else tiling.fewest_views

    def pixels(self, image: Image.Image | Sequence[Image.Image], several: bool = False) -> list[np.ndarray]:
        """Preprocess an image for every tower, without normalising.

        Args:
            image: One RGB image for all towers, or one per tower.
            several: Whether its conversation has several images.

        Returns:
            uint8[views, 3, H, W] for each tower.
        """
        per_tower = [image] * len(self.towers) if isinstance(image, Image.Image) else image
        return [preprocess(one, spec, several) for one, spec in zip(per_tower, self.specs, strict=True)]

    def __call__(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Preprocess and normalise a batch of images.

        Args:
            images: Nested or flat list of images; see `open_images`. An inner list holds the images of a conversation;
                an image in a flat list is alone in its conversation.
            return_tensors: Ignored. The result always holds torch tensors.
            **kwargs: Ignored.

        Returns:
            `pixel_values`: float32[views, 3, H, W] in reading order, or a list of one such tensor per tower. With
            native aspect also `grids`: int64[images, 2], rows and columns of each image's patches.
        """
        conversations = [open_images(one) for one in (images if isinstance(images, list | tuple) else [images])]
        pixels = [self.pixels(image, len(images) > 1) for images in conversations for image in images]
        per_tower = [
            torch.from_numpy(normalise([view for image_pixels in pixels for view in image_pixels[tower]], spec))
            for tower, spec in enumerate(self.specs)
        ]
        data = {"pixel_values": per_tower[0] if len(per_tower) == 1 else per_tower}
        if grids := self.grids(image.size for images in conversations for image in images):
            data["grids"] = torch.tensor(grids)
        return BatchFeature(data)

    preprocess = __call__


def open_images(images: Any) -> list[Image.Image]:
    """Open images as RGB, in reading order.

    Args:
        images: Nested or flat list of PIL images, arrays uint8[H, W, 3] and local paths.

    Raises:
        UserError: An image cannot be read, or is given by a URL.
        ValueError: An item is no image.
    """
    if isinstance(images, list | tuple):
        return [one for image in images for one in open_images(image)]
    if isinstance(images, str | Path):
        if str(images).startswith(("http://", "https://", "data:")):
            raise UserError(
                f"image {str(images)[:80]} is not a local file; images are not downloaded here, so pass a PIL image"
            )
        return [load_image(images)]
    return [_open_decoded(image) for image in make_flat_list_of_images(images)]


def _open_decoded(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return as_rgb(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3:
        return Image.fromarray(image)
    raise ValueError(f"expected a PIL image, a path or uint8[H, W, 3], found {type(image).__name__}")
