"""The report of a run: the score table in the terminal, and one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

from rich.table import Table

from mmchat.errors import UserError
from mmchat.evaluation.questions import BLINDS, Blind, EvalResult
from mmchat.evaluation.scores import METRICS
from mmchat.evaluation.summary import read_lines_of, summarise
from mmchat.files import read_json, read_json_lines, write_text
from mmchat.html import render
from mmchat.images import data_uri, load_image

IMAGE_SIDE = 256
"""Largest side of an image in the grid, in pixels."""
SHOWN_LINES = 20
"""Most incidents, and most left-out samples, that are listed."""


def score_table(result: EvalResult, blind: Blind = "swapped") -> Table:
    """Per kind of question: exact match, blind score, and the score of always the commonest answer."""
    table = Table(title="exact match, %", title_justify="left")
    table.add_column("kind of question")
    for column in ("questions", "model", f"blind ({BLINDS[blind]})", "commonest answer"):
        table.add_column(column, justify="right")
    for row in [*result.kinds, result.overall]:
        if row is result.overall:
            table.add_section()
        shares = (f"{100 * share:.1f}" for share in (row.score, row.blind, row.commonest))
        table.add_row(row.kind, str(row.questions), *shares)
    return table


def write_report(
    run: Path, earlier: Sequence[Path] = (), beside: Mapping[str, Path] | None = None, images: int = 24
) -> Path:
    """Write `run/report.html`: training of the run and earlier stages, and scores and answers if there are any.

    Args:
        run: run directory.
        earlier: run directories of earlier stages, in order.
        beside: name -> directory of another run that was scored on the same questions.
        images: number of held-out images to show with their answers.

    Returns:
        The path of the page.

    Raises:
        UserError: a directory is not a run, or one of `beside` has no scores of the same questions.
    """
    scored = (run / "scores.json").exists() and (run / "predictions.jsonl").exists()
    scores = read_json(run / "scores.json") if scored else {}
    others = {name: _scores_beside(directory, scores) for name, directory in (beside or {}).items()}
    stages = [_stage(directory) for directory in (*earlier, run)]
    page = render(
        "run_report.html",
        name=run.name,
        stages=stages,
        figures=[name for name in stages[-1]["figures"] if any(stage["figures"][name] for stage in stages)],
        beside=list(others),
        kinds=[_kind(name, scores, others) for name in _kinds(scores)],
        overall=_kind("overall", scores, others) if scored else None,
        metrics=[_metric(name, scores, others) for name in METRICS if name in scores],
        blind_by=BLINDS[scores.get("blind_by", "swapped")],
        grid=_grid(read_json_lines(run / "predictions.jsonl"), images) if scored else [],
        environment=read_json(run / "environment.json"),
        shown=SHOWN_LINES,
    )
    write_text(run / "report.html", page)
    return run / "report.html"


def _stage(directory: Path) -> dict[str, Any]:
    curves = directory / "curves.png"
    return {
        "name": directory.name,
        "figures": summarise(directory),
        "curves": data_uri(load_image(curves)) if curves.exists() else None,
        "config": (directory / "config.yaml").read_text(encoding="utf-8"),
        "incidents": read_lines_of(directory / "incidents.jsonl"),
        "left_out": read_lines_of(directory / "quarantine.jsonl"),
    }


def _scores_beside(directory: Path, scores: dict[str, float]) -> dict[str, float]:
    if not (directory / "scores.json").exists():
        raise UserError(f"{directory} has no scores.json; `mmchat eval MODEL DATA --out {directory}` writes it")
    theirs = read_json(directory / "scores.json")
    if _question_counts(theirs) != _question_counts(scores):
        raise UserError(
            f"{directory} was scored on other questions ({theirs.get('overall/questions', 0):,} of them, expected "
            f"{scores.get('overall/questions', 0):,} of the same kinds); evaluate both on one file"
        )
    return theirs


def _question_counts(scores: dict[str, float]) -> dict[str, float]:
    return {name: number for name, number in scores.items() if name.endswith("/questions")}


def _kinds(scores: dict[str, Any]) -> list[str]:
    return [name for name in scores if name.startswith("kind/") and name.count("/") == 1]


def _kind(name: str, scores: dict[str, float], others: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {
        "name": name.removeprefix("kind/"),
        "score": scores[name],
        "beside": [theirs[name] for theirs in others.values()],
        **{column: scores[f"{name}/{column}"] for column in ("blind", "commonest", "questions")},
    }


def _metric(name: str, scores: dict[str, Any], others: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The table of one metric of `mmchat eval --metric`; NaN if a file does not have a value."""

    def row(key: str) -> list[float]:
        return [scores[key], *(theirs.get(key, nan) for theirs in others.values()), scores.get(f"{key}/blind", nan)]

    return {
        "name": name,
        "description": METRICS[name].description,
        "kinds": {kind.removeprefix("kind/"): row(f"{kind}/{name}") for kind in _kinds(scores)},
        "overall": row(name),
        "interval": (scores[f"{name}/low"], scores[f"{name}/high"]),
    }


def _grid(predictions: list[dict[str, str]], images: int) -> list[dict[str, Any]]:
    """Images with all their questions, evenly spaced over the file, so that they are not hand-picked."""
    by_image: dict[str, list[dict[str, str]]] = {}
    for line in predictions:
        by_image.setdefault(line["image"], []).append(line)
    names = list(by_image)
    step = max(1, len(names) // max(1, images))
    cells = []
    for name in names[::step][:images]:
        image = load_image(name)
        shown = {"uri": data_uri(image, IMAGE_SIDE), "name": Path(name).name, "large": max(image.size) > 128}
        questions = [{**q, "right": q["answer"].split() == q["truth"].split()} for q in by_image[name]]
        cells.append({**shown, "questions": questions})
    return cells
