"""Samples as one self-contained HTML page. Records are untrusted text; Jinja escapes all of it."""

from pathlib import Path
from typing import Any

from PIL import Image

from mmchat.data.preview.pieces import Piece, runs
from mmchat.data.preview.preview import ImagePreview, RecordPreview, contact_sheet
from mmchat.data.preview.printable import printable
from mmchat.data.records import Rejected
from mmchat.files import write_text
from mmchat.html import render
from mmchat.images import data_uri

THUMBNAIL_SIDE = 224
"""Longest side of an original image in the page, in pixels."""


def write_page(path: Path, samples: list[RecordPreview | Rejected], title: str) -> None:
    """Write the page. Length bars are relative to the longest sample."""
    longest = max((sample.tokens for sample in samples if isinstance(sample, RecordPreview)), default=1)
    values = [_rejected(s) if isinstance(s, Rejected) else _sample(s, longest) for s in samples]
    write_text(path, render("data_show.html", title=title, samples=values))


def _rejected(sample: Rejected) -> dict[str, Any]:
    return {"where": printable(sample.where), "reason": printable(sample.reason, "\n")}


def _sample(sample: RecordPreview, longest: int) -> dict[str, Any]:
    parts = {"supervised": sample.supervised, "image": sample.slots}
    parts["ignored"] = sample.tokens - sum(parts.values())
    return {
        "where": printable(sample.where),
        "reason": None,
        "facts": sample.facts(),
        "bar": [(name, count, 100 * count / longest) for name, count in parts.items()],
        "images": [_image(image) for image in sample.images],
        "runs": [
            {
                "kind": kind,
                "supervised": supervised,
                "pieces": [(text, _tip(piece)) for piece, text in pieces],
            }
            for kind, supervised, pieces in runs(sample.pieces)
        ],
    }


def _tip(piece: Piece) -> str:
    """The tooltip of a piece."""
    label = "supervised" if piece.supervised else "ignored"
    last = piece.start + len(piece.ids) - 1
    if piece.kind == "image":
        return f"positions {piece.start}-{last}: {len(piece.ids)} x id {piece.ids[0]}, {label}"
    if len(piece.ids) == 1:
        return f"position {piece.start}: id {piece.ids[0]}, {label}"
    return f"positions {piece.start}-{last}: {len(piece.ids)} ids {', '.join(map(str, piece.ids))}, {label}"


def _image(image: ImagePreview) -> dict[str, Any]:
    size = f"{image.original.width}x{image.original.height} {image.original.mode}"
    sheets = [
        (description.partition(" -> ")[2], data_uri(Image.fromarray(contact_sheet(views).transpose(1, 2, 0))))
        for description, views in image.towers
    ]
    return {
        "name": printable(image.name),
        "views": [(size, data_uri(image.original, THUMBNAIL_SIDE)), *sheets],
    }
