"""Samples as training sees them, made ready for the eye: which words are learned, what is a control token, where
the images stand and what each tower sees of them.

    Record -> processor.render -> ids and labels -> pieces (here) -> terminal (show_terminal.py), page (show_page.py)

Nothing is encoded a second time: what is shown is read from the ids and labels that training would get.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from PIL import Image

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation import Rendered, control_tokens, get_template
from mmchat.data.clean_index import load_clean_index
from mmchat.data.config import SourceConfig
from mmchat.data.image_refs import ImageFile, ImageRef
from mmchat.data.mixture import MixtureSource
from mmchat.data.records import Record, Rejected
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.vision.spec import Grid, TowerSpec
from mmchat.vision.transforms.preprocess import image_from_patches

LONGEST_CHARACTER = 16
"""Tokens tried until they make whole characters, which have up to four bytes; a token may hold parts of two."""

SHEET_LINE = 8
"""Pixels between the views of an image."""


@dataclass(frozen=True)
class Piece:
    """The fewest tokens that stand for something readable: a control token, an image's slots, whole characters.

    broken: a token that is part of a character whose rest is not there (`max_length` cut it off).
    start: position of the first token.
    """

    kind: Literal["text", "control", "image", "broken"]
    text: str
    ids: tuple[int, ...]
    supervised: bool
    start: int


@dataclass(frozen=True)
class ImagePreview:
    """One image. towers: per tower what its preprocessing did, and what it sees, uint8[squares, 3, H, W]; of native
    aspect the whole, uint8[1, 3, H, W]."""

    name: str
    original: Image.Image
    towers: list[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class RecordPreview:
    """One sample, with everything that a reader is told about it."""

    where: str
    id: str
    template: str
    pieces: list[Piece]
    images: list[ImagePreview]
    cut: int = 0

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
        count = len(self.images)
        return [
            f"id {printable(self.id)}",
            f"template {self.template}",
            f"{self.tokens:,} tokens",
            f"{self.supervised:,} supervised ({100 * self.supervised / self.tokens:.1f} %)",
            f"{count} image{'s' * (count != 1)}",
            f"{self.cut:,} tokens cut" if self.cut else "nothing cut",
        ]


def open_unscanned(name: str, config: SourceConfig) -> MixtureSource:
    """One source, unread: all its records count as usable, those of its clean index where it has one.

    Raises:
        UserError: it cannot be opened, holds no record, or its template does not exist.
    """
    if config.template is not None:
        get_template(config.template)
    source = open_source(config.path, config.image_root, config.allow_http)
    usable = np.arange(len(source)) if config.index is None else load_clean_index(config.index, source)
    if not len(usable):
        raise UserError(f"{config.path} holds no record")
    return MixtureSource(name, source, usable[: config.max_samples], config)


def choose_records(part: MixtureSource, number: int, seed: int | None = None) -> list[int]:
    """Places of `number` records of a part: the first ones, or with a seed random ones in their order."""
    number = min(number, len(part))
    if seed is None:
        return list(range(number))
    return sorted(np.random.default_rng(seed).choice(len(part), number, replace=False).tolist())


def preview_record(
    part: MixtureSource, place: int, processor: Any, max_length: int | None = None
) -> RecordPreview | Rejected:
    """A record of a part as training would see it, or why training would not.

    Raises:
        UserError: there is no such record.
    """
    if not 0 <= place < len(part):
        raise UserError(f"there is no record {place}: {part.name} has {len(part):,} records, numbered from 0")
    record = part.record(place)
    if isinstance(record, Rejected):
        return record
    template = part.config.template
    try:
        seen = [_see(image, processor.image_processor) for image in record.images]
        return preview_with_images(record, seen, processor, max_length, template)
    except UserError as error:
        return Rejected(record.where, record.id, str(error))


def preview_with_images(
    record: Record, seen: list[ImagePreview], processor: Any, max_length: int | None = None, template: str | None = None
) -> RecordPreview:
    """Raises UserError as `conversation.render`."""
    views = [processor.image_processor.views(one.original.size) for one in seen]
    rendered = processor.render(record.turns, views, max_length, template=template)
    pieces = read_pieces(rendered, processor.tokenizer)
    return RecordPreview(record.where, record.id, template or processor.template, pieces, seen, rendered.cut)


def _see(ref: ImageRef, image_processor: Any) -> ImagePreview:
    image = ref.open()
    came = f"{image.width}x{image.height} {image.mode}"
    specs, pixels = image_processor.specs, image_processor.pixels(image)
    towers = []
    for spec, views in zip(specs, pixels, strict=True):
        if grid := spec.grid(image.size):
            towers.append((f"{came} -> {_native(grid, spec)}", image_from_patches(views, grid)[None]))
        else:
            size = f"{spec.image_size}x{spec.image_size}"
            towers.append((f"{came} -> {_views(len(views))}{size} {spec.preprocessing.fit}", views))
    name = ref.path if isinstance(ref, ImageFile) else ref.name
    return ImagePreview(name, image, towers)


def _native(grid: Grid, spec: TowerSpec) -> str:
    rows, columns = grid
    side = spec.patch_size
    return f"{columns * side}x{rows * side} {spec.preprocessing.fit}, {columns} x {rows} patches"


def _views(count: int) -> str:
    return "" if count == 1 else f"{count} x "


def contact_sheet(views: np.ndarray) -> np.ndarray:
    """uint8[views, 3, H, W] -> uint8[3, H', W']: in reading order on as square a sheet as there is, apart by a line."""
    columns = math.ceil(math.sqrt(len(views)))
    missing = -len(views) % columns
    framed = np.pad(views, ((0, missing), (0, 0), (0, SHEET_LINE), (0, SHEET_LINE)))
    _, channels, height, width = framed.shape
    rows = framed.reshape(-1, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
    return rows.reshape(channels, -1, columns * width)[:, :-SHEET_LINE, :-SHEET_LINE]


def read_pieces(rendered: Rendered, tokenizer: Any) -> list[Piece]:
    """Ids and labels as pieces, in order; all ids together are `rendered.input_ids` again."""
    ids, labels = rendered.input_ids, rendered.labels
    image_of = {at: number for number, span in enumerate(rendered.image_spans, 1) for at in range(*span)}
    control = set(tokenizer.convert_tokens_to_ids(control_tokens(tokenizer)))

    def nature(at: int) -> tuple[str, int, bool]:
        supervised = labels[at] != IGNORE_INDEX
        if at in image_of:
            return "image", image_of[at], supervised
        return ("control", at, supervised) if ids[at] in control else ("text", 0, supervised)

    pieces: list[Piece] = []
    for (kind, number, supervised), places in groupby(range(len(ids)), nature):
        start, *others = places
        stretch = ids[start : start + 1 + len(others)]
        if kind == "image":
            parts = [(kind, f"image {number}: {len(stretch)} slots", len(stretch))]
        elif kind == "control":
            parts = [(kind, tokenizer.convert_ids_to_tokens(stretch[0]), 1)]
        else:
            parts = _characters(stretch, tokenizer)
        for part, text, length in parts:
            pieces.append(Piece(part, text, tuple(ids[start : start + length]), supervised, start))
            start += length
    return pieces


def _characters(ids: Sequence[int], tokenizer: Any) -> Iterator[tuple[str, str, int]]:
    """Kind, text and number of tokens: the shortest stretches that are whole characters."""
    # Behind a letter, because decoders take the first space of a text away.
    letter = tokenizer("a", add_special_tokens=False).input_ids[-1:]
    before = tokenizer.decode(letter)
    start = 0
    while start < len(ids):
        for stop in range(start + 1, min(start + LONGEST_CHARACTER, len(ids)) + 1):
            group = list(ids[start:stop])
            text = tokenizer.decode(letter + group, clean_up_tokenization_spaces=False)
            # U+FFFD stands for bytes that are no character, unless somebody really wrote it.
            if "\ufffd" not in text or tokenizer(text, add_special_tokens=False).input_ids[-len(group) :] == group:
                yield "text", text.removeprefix(before), stop - start
                break
        else:
            stop = start + 1
            yield "broken", tokenizer.convert_ids_to_tokens(ids[start]), 1
        start = stop


def runs(pieces: Sequence[Piece]) -> Iterator[tuple[str, bool, list[tuple[Piece, str]]]]:
    """Neighbours of one kind and label together: kind, supervised, and the pieces with what is to be read.

    Control tokens and images stay alone.
    """
    for (kind, supervised, _), group in groupby(
        pieces, lambda piece: (piece.kind, piece.supervised, -1 if piece.kind == "text" else piece.start)
    ):
        members = list(group)
        spaced = _marked_spaces("".join(piece.text for piece in members))
        texts = []
        for piece in members:
            texts.append(printable(spaced[: len(piece.text)], "↵\n"))
            spaced = spaced[len(piece.text) :]
        yield kind, supervised, list(zip(members, texts, strict=True))


def _marked_spaces(text: str) -> str:
    """Spaces that could not be seen, as dots: at the ends of lines and of the text, and where several meet."""
    return re.sub(r"^ +| +$|  +", lambda match: "·" * len(match[0]), text, flags=re.MULTILINE)


def printable(text: str, line_break: str = "↵") -> str:
    """Characters that would be invisible, or steer the terminal or the direction of writing, by their names."""
    return "".join(line_break if character == "\n" else _printable(character) for character in text)


def _printable(character: str) -> str:
    category = unicodedata.category(character)
    if character == "\t":
        return "⇥"
    if category == "Zs" and character != " ":
        return "␣"
    joins_emoji = character == "\u200d"
    if category in ("Zl", "Zp") or (category[0] == "C" and not joins_emoji):
        return f"⟨U+{ord(character):04X}⟩"
    return character
