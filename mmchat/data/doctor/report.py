"""What a pass found, for people: `report.html`, which needs nothing beside it, and `report.md`.

Everything in a record is a stranger's text: Jinja escapes it, `printable` names what would steer, lengths are cut.
"""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmchat.data.doctor.charts import HEIGHT, WIDTH, Chart, histogram
from mmchat.data.doctor.findings import KINDS
from mmchat.data.doctor.inputs import Subject
from mmchat.data.doctor.outputs import Example
from mmchat.data.doctor.run import Answer
from mmchat.data.doctor.wording import cleanly, not_checked, verdict
from mmchat.data.image_refs import ImageRef
from mmchat.data.records import Record
from mmchat.errors import UserError
from mmchat.files import write_text
from mmchat.html import render

SIDE = 128
"""Longest side of a thumbnail, in pixels."""
SAMPLES = 24
"""Images in the grid of samples."""
EXAMPLE_TEXT, CAPTION_TEXT = 400, 90
"""Characters shown of a reason and of a caption."""


def write_reports(answer: Answer) -> tuple[Path, Path]:
    """Raises OSError where they cannot be written."""
    values = _values(answer)
    page, text = answer.question.out / "report.html", answer.question.out / "report.md"
    write_text(page, render("data_check.html", **values))
    write_text(text, render("data_check.md", **values))
    return page, text


def _values(answer: Answer) -> dict[str, Any]:
    return {
        "title": ", ".join(subject.name for subject in answer.subjects),
        "verdict": verdict(answer),
        "sound": answer.sound,
        "counts": answer.counts,
        "sources": _sources(answer),
        "kinds": [_kind(name, answer) for name in KINDS if answer.tally.findings[name]],
        "absent": [KINDS[name].title for name in KINDS if not answer.tally.findings[name]],
        "charts": charts(answer),
        "chart_size": (WIDTH, HEIGHT),
        "samples": _samples(answer),
        "not_checked": not_checked(answer),
        "pace": _pace(answer),
        "cleanly": cleanly,
        "code": _code,
    }


def _kind(name: str, answer: Answer) -> dict[str, Any]:
    kind = KINDS[name]
    examples = [_example(example) for example in answer.tally.examples[name]]
    return {**vars(kind), "name": name, "count": answer.tally.findings[name], "examples": examples}


def _example(example: Example) -> dict[str, Any]:
    return {
        "where": cleanly(example.where, EXAMPLE_TEXT),
        "id": cleanly(example.id, CAPTION_TEXT),
        "reason": cleanly(example.finding.reason, EXAMPLE_TEXT),
        "thumbnails": [uri for place in example.images if (uri := _thumbnail_of(*place))],
    }


def _sources(answer: Answer) -> list[dict[str, Any]]:
    rows = []
    for subject, facts in zip(answer.subjects, answer.facts, strict=True):
        rows.append(
            {
                "name": subject.name,
                "records": len(subject),
                "sound": answer.counts[f"source/{subject.name}/sound"],
                "images": int(facts.images.sum(dtype=np.int64)),
                "tokens": int(facts.tokens.sum(dtype=np.int64)),
                "supervised": int(facts.supervised.sum(dtype=np.int64)),
            }
        )
    return rows


def charts(answer: Answer) -> list[Chart]:
    """Of all sources together; what was not measured has no chart."""
    columns = {
        name: np.concatenate([getattr(facts, name) for facts in answer.facts])
        for name in ("tokens", "supervised", "turns", "images")
    }
    size = np.concatenate([facts.size for facts in answer.facts]).astype(np.int64)
    read, measured = columns["turns"] > 0, columns["tokens"] > 0
    drawn = [
        histogram("tokens of a record", columns["tokens"][measured], answer.question.data.max_length),
        histogram("supervised tokens of a record", columns["supervised"][measured]),
        histogram("turns of a record", columns["turns"][read]),
        histogram("images of a record", columns["images"][read]),
        histogram("width of an image", size[:, 0]),
        histogram("height of an image", size[:, 1]),
        histogram("aspect of an image (width / height)", size[:, 0] / np.maximum(size[:, 1], 1), decimals=2),
    ]
    return [chart for chart in drawn if chart is not None]


def _samples(answer: Answer) -> list[dict[str, str]]:
    """Records with an image, taken evenly from everything, so that nobody chose them."""
    imaged = [(subject, np.flatnonzero(f.images)) for subject, f in zip(answer.subjects, answer.facts, strict=True)]
    total = sum(len(numbers) for _, numbers in imaged)
    cells = []
    for at in np.unique(np.linspace(0, total - 1, min(SAMPLES, total), dtype=int)).tolist():
        for subject, numbers in imaged:
            if at < len(numbers):
                cells.append(_sample(subject, int(numbers[at])))
                break
            at -= len(numbers)
    return [cell for cell in cells if cell["uri"]]


def _sample(subject: Subject, place: int) -> dict[str, str]:
    record = subject.record(place)
    if not isinstance(record, Record):
        return {"uri": ""}
    said = {role: next((turn.text for turn in record.turns if turn.role == role), "") for role in ("user", "assistant")}
    words = {role: cleanly(text.strip(), CAPTION_TEXT) for role, text in said.items()}
    return {"uri": _thumbnail(record.images[0]), "where": cleanly(record.where, EXAMPLE_TEXT), **words}


def _thumbnail_of(subject: Subject, place: int, image: int) -> str:
    images = subject.images(place)
    return _thumbnail(images[max(image, 0)]) if max(image, 0) < len(images) else ""


def _thumbnail(ref: ImageRef) -> str:
    """A data URI; empty where the image cannot be decoded."""
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


def _pace(answer: Answer) -> str:
    done = sum(map(len, answer.subjects + answer.held_out)) - answer.known
    known = f", {answer.known:,} had been examined before" if answer.known else ""
    return f"{done:,} records in {answer.seconds:,.1f} s, {done / answer.seconds:,.0f} a second{known}"


def _code(text: str) -> str:
    """A code span of Markdown, which also fits into a table."""
    return "`" + cleanly(text, EXAMPLE_TEXT).replace("`", "'").replace("|", "¦") + "`"
