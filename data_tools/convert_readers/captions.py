"""Images with captions: COCO, CSV and TSV. One record per caption."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

from convert_readers.interface import (
    ConversionJob,
    Converted,
    Skipped,
    UnusableItem,
    convert_items,
    make_turns,
    text_field,
)
from convert_readers.json_streams import DiskIndex, MeteredFile, read_list
from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.errors import UserError

BRIEF_PROMPTS = (
    "Describe the image concisely.",
    "Provide a brief description of the given image.",
    "Offer a succinct explanation of the picture presented.",
    "Summarize the visual content of the image.",
    "Give a short and clear explanation of the subsequent image.",
    "Share a concise interpretation of the image provided.",
    "Present a compact description of the photo's key features.",
    "Relay a brief, clear account of the picture shown.",
    "Render a clear and concise summary of the photo.",
    "Write a terse but informative summary of the picture.",
    "Create a compact narrative representing the image presented.",
)
"""LLaVA's instructions for brief descriptions (Liu et al. 2023, arXiv:2304.08485, appendix)."""

IMAGE_COLUMNS = ("image", "image_path", "file_name", "filename", "filepath", "file", "path", "img")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "description")
_LONGEST_FIELD = 1 << 20  # characters; a longer field means an unclosed quotation mark


def caption_record(job: ConversionJob, name: str, image: str, caption: str) -> dict[str, Any]:
    """A caption record. LLaVA chooses one of its prompts at random; here the record's id determines it."""
    prompt = BRIEF_PROMPTS[crc32(name.encode()) % len(BRIEF_PROMPTS)] if job.prompt is None else job.prompt
    question = f"{IMAGE_PLACEHOLDER}\n{prompt}" if prompt else IMAGE_PLACEHOLDER
    return {"id": name, "image": image, "conversations": make_turns((question, caption.strip()))}


def coco(job: ConversionJob) -> Iterator[Converted | Skipped]:
    """captions_{train,val}{2014,2017}.json: `images` [{id, file_name}], `annotations` [{id, image_id, caption}]."""
    for path in job.inputs:
        yield from _coco_file(job, path)


def _coco_file(job: ConversionJob, path: Path) -> Iterator[Converted | Skipped]:
    images = DiskIndex()

    def remember(where: str, item: Any) -> None:
        images.add(text_field(item, "id"), text_field(item, "file_name"))

    def describe(where: str, item: Any) -> Converted:
        name = images.get(text_field(item, "image_id"))
        if name is None:
            raise UnusableItem("no entry in `images` for the caption", f"image_id {item['image_id']}")
        image = job.image_path(name, f"{_coco_folder(name, path)}/{name}")
        return Converted(where, caption_record(job, text_field(item, "id"), image, text_field(item, "caption")))

    yield from filter(None, convert_items(read_list(path, "images", job.advance), remember))
    yield from convert_items(read_list(path, "annotations", job.advance), describe)


def _coco_folder(name: str, path: Path) -> str:
    """Image folder, from the image name in 2014 (COCO_train2014_000000000009.jpg), from the annotation file in 2017."""
    return name.split("_")[1] if name.count("_") == 2 else path.stem.removeprefix("captions_")


def table(job: ConversionJob) -> Iterator[Converted | Skipped]:
    """CSV, or TSV by its suffix, with a header line. Ids are from the `id` column, otherwise from row numbers."""
    for path in job.inputs:
        yield from convert_items(_rows(path, job.advance), partial(_describe, job))


def _describe(job: ConversionJob, where: str, row: dict[str | None, Any]) -> Converted:
    image = pick_column(row, job.image_column, IMAGE_COLUMNS, "--image-column", where)
    caption = pick_column(row, job.caption_column, CAPTION_COLUMNS, "--caption-column", where)
    if None in row or None in row.values():
        raise UnusableItem("not as many columns as the header", list(row.values()))
    return Converted(
        where, caption_record(job, text_field(row, "id"), text_field(row, image), text_field(row, caption))
    )


def pick_column(
    names: Iterable[str | None], chosen: str | None, known: tuple[str, ...], option: str, where: str
) -> str:
    """The chosen column, or the first of the known names that exists (case-insensitive).

    Raises:
        UserError: there is no such column.
    """
    named = {str(name).strip().lower(): name for name in names if name is not None}
    found = chosen if chosen in named.values() else next((named[name] for name in known if name in named), None)
    if found is None or (chosen and found != chosen):
        looked = chosen or ", ".join(known)
        raise UserError(f"{where}: no column {looked} among {', '.join(named.values())}; give its name with {option}")
    return found


def _rows(path: Path, advance: Callable[[int], None]) -> Iterator[tuple[str, dict[str | None, Any]]]:
    """(where, row): surplus cells have the key None, missing cells the value None."""
    csv.field_size_limit(_LONGEST_FIELD)
    number = 0
    try:
        with path.open("rb") as file:
            lines = io.TextIOWrapper(io.BufferedReader(MeteredFile(file, advance)), encoding="utf-8-sig", newline="")
            rows = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            if len(set(rows.fieldnames or [])) < 2:
                raise UserError(f"{path}: the first line must name two columns or more, found {rows.fieldnames}")
            for number, row in enumerate(rows, 1):
                yield f"{path.name} row {number}", {"id": f"{path.stem}_{number}", **row}
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text after row {number}: {error}") from None
    except csv.Error as error:
        raise UserError(f"{path}: row {number + 1} cannot be read: {error}; is a quotation mark not closed?") from None
    if not number:
        raise UserError(f"{path} has a header but no rows")
