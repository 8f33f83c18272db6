"""The reports of a check: a self-contained `report.html`, and `report.md`.

Records are untrusted text: Jinja escapes it, `printable` replaces control characters, and lengths are limited.
"""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmchat.data.doctor.charts import HEIGHT, WIDTH, Chart, histogram
from mmchat.data.doctor.findings import KINDS
from mmchat.data.doctor.inputs import CheckedSource
from mmchat.data.doctor.outputs import Example
from mmchat.data.doctor.run import CheckResult
from mmchat.data.doctor.wording import cleanly, not_checked, unread_keys, verdict
from mmchat.data.image_refs import ImageRef
from mmchat.data.records import Record
from mmchat.errors import UserError
from mmchat.files import write_text
from mmchat.html import render

SIDE = 128
"""Longest side of a thumbnail, in pixels."""
SAMPLES = 24
"""Number of images in the grid of samples."""
_NOT_IN_CODE = str.maketrans("`|<>", "'¦⟨⟩")
EXAMPLE_TEXT, CAPTION_TEXT = 400, 90
"""Maximum characters shown of a reason and of a caption."""


def write_reports(result: CheckResult) -> tuple[Path, Path]:
    """Write both reports and return their paths. Raises OSError if they cannot be written."""
    values = _values(result)
    page, text = result.request.out / "report.html", result.request.out / "report.md"
    write_text(page, render("data_check.html", **values))
    write_text(text, render("data_check.md", **values))
    return page, text


def _values(result: CheckResult) -> dict[str, Any]:
    return {
        "title": ", ".join(source.name for source in result.sources),
        "verdict": verdict(result),
        "sound": result.sound,
        "counts": result.counts,
        "sources": _sources(result),
        "kinds": [_kind(name, result) for name in KINDS if result.tally.findings[name]],
        "absent": [KINDS[name].title for name in KINDS if not result.tally.findings[name]],
        "charts": charts(result),
        "chart_size": (WIDTH, HEIGHT),
        "samples": _samples(result),
        "not_checked": not_checked(result),
        "unread_keys": unread_keys(result),
        "pace": _pace(result),
        "cleanly": cleanly,
        "code": _code,
    }


def _kind(name: str, result: CheckResult) -> dict[str, Any]:
    kind = KINDS[name]
    examples = [_example(example) for example in result.tally.examples[name]]
    return {**vars(kind), "name": name, "count": result.tally.findings[name], "examples": examples}


def _example(example: Example) -> dict[str, Any]:
    return {
        "where": cleanly(example.where, EXAMPLE_TEXT),
        "id": cleanly(example.id, CAPTION_TEXT),
        "reason": cleanly(example.finding.reason, EXAMPLE_TEXT),
        "thumbnails": [uri for place in example.images if (uri := _thumbnail_of(*place))],
    }


def _sources(result: CheckResult) -> list[dict[str, Any]]:
    rows = []
    for source, stats in zip(result.sources, result.stats, strict=True):
        rows.append(
            {
                "name": source.name,
                "records": len(source),
                "clean": result.counts[f"source/{source.name}/sound"],
                "images": int(stats.images.sum(dtype=np.int64)),
                "tokens": int(stats.tokens.sum(dtype=np.int64)),
                "supervised": int(stats.supervised.sum(dtype=np.int64)),
            }
        )
    return rows


def charts(result: CheckResult) -> list[Chart]:
    """Charts of all sources together. What was not measured has no chart."""
    columns = {
        name: np.concatenate([getattr(stats, name) for stats in result.stats])
        for name in ("tokens", "supervised", "turns", "images")
    }
    size = np.concatenate([stats.size for stats in result.stats]).astype(np.int64)
    read, measured = columns["turns"] > 0, columns["tokens"] > 0
    drawn = [
        histogram("tokens per record", columns["tokens"][measured], result.request.data.max_length),
        histogram("supervised tokens per record", columns["supervised"][measured]),
        histogram("turns per record", columns["turns"][read]),
        histogram("images per record", columns["images"][read]),
        histogram("image width", size[:, 0]),
        histogram("image height", size[:, 1]),
        histogram("image aspect ratio (width / height)", size[:, 0] / np.maximum(size[:, 1], 1), decimals=2),
    ]
    return [chart for chart in drawn if chart is not None]


def _samples(result: CheckResult) -> list[dict[str, str]]:
    """Records with an image, at even intervals over all sources."""
    imaged = [(source, np.flatnonzero(f.images)) for source, f in zip(result.sources, result.stats, strict=True)]
    total = sum(len(numbers) for _, numbers in imaged)
    cells = []
    for at in np.unique(np.linspace(0, total - 1, min(SAMPLES, total), dtype=int)).tolist():
        for source, numbers in imaged:
            if at < len(numbers):
                cells.append(_sample(source, int(numbers[at])))
                break
            at -= len(numbers)
    return [cell for cell in cells if cell["uri"]]


def _sample(source: CheckedSource, place: int) -> dict[str, str]:
    record = source.record(place)
    if not isinstance(record, Record):
        return {"uri": ""}
    texts = {
        role: next((turn.text for turn in record.turns if turn.role == role), "") for role in ("user", "assistant")
    }
    shown = {role: cleanly(text.strip(), CAPTION_TEXT) for role, text in texts.items()}
    return {"uri": _thumbnail(record.images[0]), "where": cleanly(record.where, EXAMPLE_TEXT), **shown}


def _thumbnail_of(source: CheckedSource, place: int, image: int) -> str:
    images = source.images(place)
    return _thumbnail(images[max(image, 0)]) if max(image, 0) < len(images) else ""


def _thumbnail(ref: ImageRef) -> str:
    """A data URI; empty if the image cannot be decoded."""
    try:
        image = ref.open()
    except UserError:
        return ""
    small = max(image.size) <= SIDE
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    with io.BytesIO() as encoded:
        image.save(encoded, "PNG" if small else "JPEG", quality=80)
        kind = "png" if small else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _pace(result: CheckResult) -> str:
    done = sum(map(len, result.sources + result.held_out)) - result.known
    known = f", {result.known:,} checked earlier" if result.known else ""
    return f"{done:,} records in {result.seconds:,.1f} s, {done / result.seconds:,.0f} a second{known}"


def _code(text: str) -> str:
    """A Markdown code span that is safe within a table, and shows no HTML even to a reader that ignores code spans."""
    return "`" + cleanly(text, EXAMPLE_TEXT).translate(_NOT_IN_CODE) + "`"
