"""A preview sheet: the first images of a data set with their labels, to inspect before training."""

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from mmchat.files import read_json_lines
from synthetic.fonts import SHIPPED, find_faces

PREVIEW = "preview.png"
_LETTERS, _GAP, _LEADING = 13, 12, 16
"""Pixels."""


def write_preview(records: Path, number: int, cell: int, columns: int, lines: int) -> Path:
    """Write `preview.png` next to a file of records.

    Args:
        records: JSONL file.
        number: images on the sheet.
        cell: width of a column in pixels.
        columns: images per row.
        lines: maximum lines of text below an image.

    Returns:
        Path of the sheet.
    """
    face = next(face for face in find_faces([SHIPPED]) if (face.family, face.style) == ("DejaVu Sans", "Book"))
    font = face.at(_LETTERS)
    wrap = textwrap.TextWrapper(width=int(cell / (0.58 * _LETTERS)), max_lines=lines, placeholder=" ...")
    cells = []
    for record in read_json_lines(records)[:number]:
        with Image.open(records.parent / record["image"]) as image:
            image.thumbnail((cell, cell), Image.Resampling.LANCZOS)
            answers = [turn["value"] for turn in record["conversations"] if turn["from"] == "gpt"]
            cells.append((image.convert("RGB"), [line for text in answers for line in wrap.wrap(text)][:lines]))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
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
