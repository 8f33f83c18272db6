"""The unit of training: a record after the objective has encoded it."""

from dataclasses import dataclass

import numpy as np

from mmchat.vision.layout import SlotMap
from mmchat.vision.spec import Grid


@dataclass
class EncodedSample:
    """What an objective makes of a record.

    Attributes:
        input_ids: Token ids.
        labels: As long as `input_ids`; None for an objective without labels.
        pixels: Per image and tower, uint8[views, 3, H, W]. Empty if `features` holds the images.
        cut: Number of tokens removed by `max_length`.
        features: Per image and tower, cached tower output [views, tokens, width]; None if the towers run.
        grids: Patch grid of each image for native-aspect towers, else None.
        slot_maps: Slot map of each image, if the fit has them, else None.
    """

    input_ids: list[int]
    labels: list[int] | None
    pixels: list[list[np.ndarray]]
    cut: int = 0
    features: list[list[np.ndarray]] | None = None
    grids: list[Grid] | None = None
    slot_maps: list[SlotMap] | None = None

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self._image_arrays)

    @property
    def views(self) -> int:
        """Number of views of all images. Every tower sees the same number, so the first one is counted."""
        return sum(self.views_of_images)

    @property
    def views_of_images(self) -> list[int]:
        """Number of views of each image."""
        return [len(per_tower[0]) for per_tower in self._image_arrays]

    @property
    def _image_arrays(self) -> list[list[np.ndarray]]:
        return self.pixels if self.features is None else self.features


@dataclass
class Sample:
    """An encoded record with its number in the mixture (`index`) and the record's id."""

    index: int
    id: str
    encoded: EncodedSample
