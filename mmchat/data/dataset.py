"""Samples are encoded where they are needed: in the data workers, one record at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmchat.data.records import Record, Rejected
from mmchat.errors import UserError
from mmchat.images import load_image, resolve_inside


@dataclass
class Sample:
    """An encoded record.

    input_ids, labels: equally long lists; labels is None for an objective that has none.
    pixels: per image, per tower, uint8[3, H, W].
    """

    index: int
    id: str
    input_ids: list[int]
    labels: list[int] | None
    pixels: list[list[np.ndarray]]


Encode = Callable[[Record, list[Image.Image]], tuple[list[int], list[int] | None, list[list[np.ndarray]]]]


class RecordDataset:
    """A map-style dataset: index -> `Sample`, or `Rejected` where the record turns out unusable.

    Nothing takes a rejected sample's place; the batch is one smaller and the loop is told.
    """

    def __init__(self, records: list[Record], image_root: Path, encode: Encode) -> None:
        self.records, self.image_root, self.encode = records, image_root, encode

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample | Rejected:
        record = self.records[index]
        try:
            images = [load_image(resolve_inside(self.image_root, image)) for image in record.images]
            input_ids, labels, pixels = self.encode(record, images)
        except UserError as error:
            return Rejected(record.where, record.id, str(error))
        return Sample(index, record.id, input_ids, labels, pixels)
