"""One page about several runs: curves over each other, config differences, figures, scores, answers side by side."""

from pathlib import Path
from typing import Any

from mmchat.files import read_json_lines, write_text
from mmchat.html import render
from mmchat.images import data_uri, load_image
from mmchat.training.monitoring.compare_runs import check_runs, differences, figures_of, names_of, score_rows, shown
from mmchat.training.monitoring.curves import draw_runs

IMAGE_SIDE = 256
"""Largest side of an image, in pixels."""


def write_runs_report(directories: list[Path], out: Path, images: int = 24) -> Path:
    """Write the page.

    Args:
        directories: Run directories, two or more. Scores and answers appear after `mmchat eval ... --out RUN`.
        out: The HTML file.
        images: Number of questions whose answers are shown.

    Raises:
        UserError: A directory is not that of a run, or they were scored on other questions.
    """
    check_runs(directories)
    names = names_of(directories)
    curves = out.with_suffix(".png")
    draw_runs({name: read_json_lines(d / "metrics.jsonl") for name, d in zip(names, directories, strict=True)}, curves)
    page = render(
        "runs_report.html",
        names=names,
        figures=figures_of(directories),
        differences=differences(directories),
        shown=shown,
        curves=data_uri(load_image(curves)),
        scores=score_rows(directories),
        answers=_answers(directories, images),
    )
    curves.unlink()
    write_text(out, page)
    return out


def _answers(directories: list[Path], count: int) -> list[dict[str, Any]]:
    """Questions that every run with predictions has answered, first those that are answered differently."""
    paths = [directory / "predictions.jsonl" for directory in directories]
    if not any(path.exists() for path in paths):
        return []
    found = [{(q["image"], q["question"]): q for q in read_json_lines(p)} if p.exists() else None for p in paths]
    asked = [answers for answers in found if answers is not None]
    common = [key for key in asked[0] if all(key in answers for answers in asked)]
    common.sort(key=lambda key: len({answers[key]["answer"] for answers in asked}) == 1)  # stable
    return [_row(key, found) for key in common[:count]]


def _row(key: tuple[str, str], found: list[dict[tuple[str, str], dict[str, str]] | None]) -> dict[str, Any]:
    image, question = key
    truth = next(answers[key]["truth"] for answers in found if answers is not None)
    answers = [None if one is None else one[key]["answer"] for one in found]
    right = [answer is not None and answer.split() == truth.split() for answer in answers]
    return {
        "uri": data_uri(load_image(image), IMAGE_SIDE),
        "name": Path(image).name,
        "question": question,
        "truth": truth,
        "answers": list(zip(answers, right, strict=True)),
    }
