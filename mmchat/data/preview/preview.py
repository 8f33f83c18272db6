"""Samples as training sees them: which text is supervised, control tokens, image slots, and what each tower sees.

    Record -> processor.render -> ids and labels -> pieces.py -> terminal.py or html.py

Everything is read from the ids and labels that training gets; nothing is encoded a second time.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from mmchat.conversation import get_template
from mmchat.data.clean_index import load_clean_index
from mmchat.data.config import SourceConfig
from mmchat.data.image_refs import ImageFile, ImageRef
from mmchat.data.mixture import MixtureSource
from mmchat.data.preview.pieces import Piece, read_pieces
from mmchat.data.preview.printable import printable
from mmchat.data.records import ImagePlace, Record, Rejected
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.vision.spec import Grid, TowerSpec
from mmchat.vision.transforms.preprocess import image_from_patches

SHEET_LINE = 8
"""Pixels between the views on a contact sheet."""


@dataclass(frozen=True)
class ImagePreview:
    """One image. `towers`: per tower a description of its preprocessing, and the views, uint8[views, 3, H, W]; a
    native-aspect image is one view, uint8[1, 3, H, W]."""

    name: str
    original: Image.Image
    towers: list[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class RecordPreview:
    """One sample, with everything that is shown about it."""

    where: str
    id: str
    template: str
    pieces: list[Piece]
    images: list[ImagePreview]
    cut: int = 0
    image_place: ImagePlace = "as_written"
    captions: int = 1

    @property
    def tokens(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces)

    @property
    def slots(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces if piece.kind == "image")

    @property
    def supervised(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces if piece.supervised)

    def facts(self) -> list[str]:
        """The line of figures above a sample."""
        count = len(self.images)
        return [
            f"id {printable(self.id)}",
            f"template {self.template}",
            f"image_place {self.image_place}",
            *([f"the first of {self.captions} captions"] if self.captions > 1 else []),
            f"{self.tokens:,} tokens",
            f"{self.supervised:,} supervised ({100 * self.supervised / self.tokens:.1f} %)",
            f"{count} image{'s' * (count != 1)}",
            f"{self.cut:,} tokens cut" if self.cut else "nothing cut",
        ]


def open_unscanned(name: str, config: SourceConfig) -> MixtureSource:
    """Open one source without scanning it. All its records, or those of its clean index, count as usable.

    Raises:
        UserError: The source cannot be opened, holds no record, or names an unknown template.
    """
    if config.template is not None:
        get_template(config.template)
    source = open_source(config.path, config.image_root, config.allow_http)
    usable = np.arange(len(source)) if config.index is None else load_clean_index(config.index, source)
    if not len(usable):
        raise UserError(f"{config.path} holds no record")
    return MixtureSource(name, source, usable[: config.max_samples], config)


def choose_records(source: MixtureSource, number: int, seed: int | None = None) -> list[int]:
    """Numbers of `number` records of a source: the first ones, or with a seed random ones, ascending."""
    number = min(number, len(source))
    if seed is None:
        return list(range(number))
    return sorted(np.random.default_rng(seed).choice(len(source), number, replace=False).tolist())


def preview_record(
    source: MixtureSource, place: int, processor: Any, max_length: int | None = None
) -> RecordPreview | Rejected:
    """A record of a source as training sees it, or why it is unusable.

    Raises:
        UserError: There is no record `place`.
    """
    if not 0 <= place < len(source):
        raise UserError(f"there is no record {place}: {source.name} has {len(source):,} records, numbered from 0")
    record = source.record(place)
    if isinstance(record, Rejected):
        return record
    template = source.config.template
    try:
        several = len(record.images) > 1
        images = [_preview_image(image, processor.image_processor, several) for image in record.images]
        preview = _preview_with_images(record, images, processor, max_length, template)
        return replace(preview, image_place=source.config.image_place, captions=max(1, len(record.captions)))
    except UserError as error:
        return Rejected(record.where, record.id, str(error))


def _preview_with_images(
    record: Record,
    images: list[ImagePreview],
    processor: Any,
    max_length: int | None = None,
    template: str | None = None,
) -> RecordPreview:
    layouts = processor.layouts([one.original.size for one in images])
    rendered = processor.render(record.turns, layouts, max_length, template=template)
    pieces = read_pieces(rendered, processor.tokenizer, processor.slot_tokens)
    return RecordPreview(record.where, record.id, template or processor.template, pieces, images, rendered.cut)


def _preview_image(ref: ImageRef, image_processor: Any, several: bool) -> ImagePreview:
    image = ref.open()
    original = f"{image.width}x{image.height} {image.mode}"
    specs, pixels = image_processor.specs, image_processor.pixels(image, several)
    towers = []
    for spec, views in zip(specs, pixels, strict=True):
        if grid := spec.grid(image.size):
            towers.append((f"{original} -> {_native(grid, spec)}", image_from_patches(views, grid)[None]))
        else:
            size = f"{spec.image_size}x{spec.image_size}"
            towers.append((f"{original} -> {_views(len(views))}{size} {spec.preprocessing.fit}", views))
    name = ref.path if isinstance(ref, ImageFile) else ref.name
    return ImagePreview(name, image, towers)


def _native(grid: Grid, spec: TowerSpec) -> str:
    rows, columns = grid
    side = spec.patch_size
    return f"{columns * side}x{rows * side} {spec.preprocessing.fit}, {columns} x {rows} patches"


def _views(count: int) -> str:
    return "" if count == 1 else f"{count} x "


def contact_sheet(views: np.ndarray) -> np.ndarray:
    """Views in reading order on a nearly square sheet: uint8[views, 3, H, W] -> uint8[3, H', W']."""
    columns = math.ceil(math.sqrt(len(views)))
    missing = -len(views) % columns
    framed = np.pad(views, ((0, missing), (0, 0), (0, SHEET_LINE), (0, SHEET_LINE)))
    _, channels, height, width = framed.shape
    rows = framed.reshape(-1, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
    return rows.reshape(channels, -1, columns * width)[:, :-SHEET_LINE, :-SHEET_LINE]
