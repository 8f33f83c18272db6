"""A sheet with the first images of a data set and what is said of each, to look at before anything learns from it."""

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from mmchat.files import read_json_lines
from synthetic.fonts import SHIPPED, find_faces

PREVIEW = "preview.png"
_LETTERS, _GAP, _LEADING = 13, 12, 16
"""Pixels."""


def write_preview(records: Path, number: int, cell: int, columns: int, lines: int) -> Path:
    """`preview.png` beside a file of records. cell: pixels, a column's width; lines: of text under each, at most."""
    face = next(face for face in find_faces([SHIPPED]) if (face.family, face.style) == ("DejaVu Sans", "Book"))
    font = face.at(_LETTERS)
    wrap = textwrap.TextWrapper(width=int(cell / (0.58 * _LETTERS)), max_lines=lines, placeholder=" ...")
    shown = []
    for record in read_json_lines(records)[:number]:
        with Image.open(records.parent / record["image"]) as image:
            image.thumbnail((cell, cell), Image.Resampling.LANCZOS)
            said = [turn["value"] for turn in record["conversations"] if turn["from"] == "gpt"]
            shown.append((image.convert("RGB"), [line for text in said for line in wrap.wrap(text)][:lines]))
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    heights = [max(image.height + _LEADING * len(text) for image, text in row) + 2 * _GAP for row in rows]
    sheet = Image.new("RGB", (columns * (cell + _GAP) + _GAP, sum(heights) + _GAP), (225, 228, 232))
    pen, top = ImageDraw.Draw(sheet), _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, (image, text) in enumerate(row):
            left = _GAP + column * (cell + _GAP)
            sheet.paste(image, (left, top))
            for line, words in enumerate(text):
                pen.text((left, top + image.height + 3 + line * _LEADING), words, fill=(30, 30, 60), font=font)
        top += height
    path = records.with_name(PREVIEW)
    sheet.save(path)
    return path
