"""Answers in files: those of `mmchat eval --task`, and those of other programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.evaluation.tasks.answering import OWN, as_sample
from mmchat.evaluation.tasks.samples import Sample

IDS = ("id", "question_id", "questionId", "index")
ANSWERS = ("answer", "text", "prediction", "caption")
"""Fields of other programs: LLaVA has question_id and text, VLMEvalKit index and prediction, VQAv2's server question_id
and answer, DocVQA's questionId and answer, COCO's image_id and caption (rename its image_id)."""


@dataclass(frozen=True)
class Answered:
    """What is known about the answer to a question."""

    text: str
    stopped: str | None = None
    """Why it ended, if the program says so."""
    error: str | None = None
    """Why there is none."""


@dataclass(frozen=True)
class Answers:
    """The answers to the samples of a task, in their order.

    Attributes:
        samples: The questions.
        own: The answers to them.
        blind: Those about other images, or None.
        blind_by: How these images were made.
    """

    samples: Sequence[Sample]
    own: Sequence[Answered]
    blind: Sequence[Answered] | None = None
    blind_by: str | None = None


def read_answers(
    path: Path,
    samples: Sequence[Sample] | None = None,
    allow_missing: bool = False,
    data_is_larger: bool = False,
) -> Answers:
    """Read answers from JSON lines, a JSON array or a table.

    Args:
        path: The file.
        samples: The questions, from the data; None: the file holds them itself.
        allow_missing: Questions without an answer count as answered with an empty text.
        data_is_larger: The file may answer other questions too.

    Raises:
        UserError: The file holds something else, or lacks answers.
    """
    by_image = _lines_by_image(path)
    own = by_image.pop(OWN, {})
    if samples is None:
        samples = sorted((as_sample(line) for line in own.values()), key=lambda one: (one.row, one.turns))
    if not samples:
        raise UserError(f"{path} holds no answer")
    if (unknown := own.keys() - {sample.id for sample in samples}) and not data_is_larger:
        raise UserError(f"{path} answers {len(unknown):,} questions that the data do not have, as {min(unknown)!r}")
    found = _in_order(path, samples, own, allow_missing)
    # A file may hold blind answers of two kinds; one complete kind is enough.
    for blind_by, lines in sorted(by_image.items(), reverse=True):
        if all(sample.id in lines for sample in samples):
            return Answers(samples, found, _in_order(path, samples, lines, True), blind_by)
    return Answers(samples, found)


def _in_order(
    path: Path, samples: Sequence[Sample], lines: Mapping[str, Mapping[str, Any]], allow_missing: bool
) -> list[Answered]:
    missing = [sample.id for sample in samples if sample.id not in lines]
    if missing and not allow_missing:
        raise UserError(
            f"{path} has no answer to {len(missing):,} of {len(samples):,} questions, as {missing[0]!r}; "
            "--allow-missing counts them as answered with an empty text"
        )
    return [_answered(lines.get(sample.id, {"error": "there is no answer"})) for sample in samples]


def _answered(line: Mapping[str, Any]) -> Answered:
    if "error" in line:
        return Answered("", error=str(line["error"]))
    text = next((line[name] for name in ANSWERS if name in line), "")
    return Answered(text if isinstance(text, str) else str(text), line.get("stopped"))


def _lines_by_image(path: Path) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The lines by image, then by id. A last line that a killed program left incomplete is dropped."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for number, line in enumerate(_values(path), 1):
        name = next((line[key] for key in IDS if key in line), None) if isinstance(line, Mapping) else None
        if name is None or not ("error" in line or any(key in line for key in ANSWERS)):
            raise UserError(
                f"{path}: line {number} must have one of {', '.join(IDS)} and one of {', '.join(ANSWERS)}, "
                f"found {line!r:.80}"
            )
        group = found.setdefault(str(line.get("image", OWN)) if "sample" in line or "image" in line else OWN, {})
        if str(name) in group:
            raise UserError(f"{path}: line {number} answers {str(name)!r} again")
        group[str(name)] = line
    return found


def _values(path: Path) -> list[Any]:
    if path.suffix in (".csv", ".tsv", ".parquet"):
        table = open_source(path).table
        return [table.row(number)[1] for number in range(len(table))]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    try:
        if text.lstrip()[:1] == "[":
            return list(json.loads(text))
        *lines, last = text.split("\n")
        values = [json.loads(line) for line in lines if line.strip()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} must hold JSON lines or a JSON array: {error}") from None
    try:
        return [*values, json.loads(last)] if last.strip() else values
    except ValueError:
        return values
