"""`mmchat eval compare`: two models on the same questions."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchat.errors import UserError
from mmchat.files import write_json, write_text

if TYPE_CHECKING:
    from mmchat.evaluation.tasks.definition import TaskConfig

EXAMPLE = "mmchat eval compare runs/early runs/late --out runs/late/compared"
DETAILS = """A and B are answers that `mmchat eval` kept: files TASK.answers.jsonl or predictions.jsonl, or folders that
hold them. The difference is B minus A, in pairs of answers to the same question, with a 95 % interval; if the interval
does not hold zero, the models differ."""
ENDING = ".answers.jsonl"
PREDICTIONS = "predictions.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(DETAILS)
    parser.add_argument("first", metavar="A", type=Path, help="answers, or the folder of several tasks")
    parser.add_argument("second", metavar="B", type=Path, help="the same of another model")
    parser.add_argument("--task", metavar="NAME", help="task of the files; default: the name of the file; or .yaml")
    parser.add_argument(
        "--data", type=Path, nargs="+", metavar="PATH", help="the benchmark, for its images in the page"
    )
    parser.add_argument("--image-root", type=Path, metavar="DIR", help="folder of images; default: that of the data")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write compare.html and compare.json")


def run(arguments: argparse.Namespace) -> None:
    from mmchat.evaluation.tasks.comparing import compare
    from mmchat.evaluation.tasks.pages import comparison_page
    from mmchat.evaluation.tasks.tables import comparison_notes, comparison_table
    from mmchat.terminal import PlainConsole

    names = _names(arguments.first, arguments.second)
    found, image_of = [], _images(arguments)
    for first, second in _pairs(arguments.first, arguments.second):
        name, task = _task(first, arguments.task)
        comparison = compare(task, _read(first), _read(second))
        found.append((name, comparison))
        PlainConsole().print(comparison_table(f"{name}: {task.title}", names, comparison))
        print("\n".join(comparison_notes(names, comparison)))
    if arguments.out is not None:
        title = f"{names[0]} and {names[1]}"
        write_json(arguments.out / "compare.json", {name: one.flat() for name, one in found})
        write_text(arguments.out / "compare.html", comparison_page(title, names, found, image_of))
        print(f"{arguments.out / 'compare.json'}\n{arguments.out / 'compare.html'}")


def _pairs(first: Path, second: Path) -> list[tuple[Path, Path]]:
    """The files of the same name in both, or the two files.

    Raises:
        UserError: There is none in both.
    """
    for path in (first, second):
        if not path.exists():
            raise UserError(f"{path} does not exist")
    if first.is_file() or second.is_file():
        if first.is_dir() or second.is_dir():
            raise UserError(f"{first} and {second} must both be files or both be folders")
        return [(first, second)]
    names = sorted(path.name for path in first.iterdir() if path.name.endswith(ENDING) or path.name == PREDICTIONS)
    both = [name for name in names if (second / name).is_file()]
    if not both:
        raise UserError(f"{first} and {second} hold no TASK{ENDING} or {PREDICTIONS} of the same name")
    return [(first / name, second / name) for name in both]


def _task(path: Path, given: str | None) -> tuple[str, "TaskConfig"]:
    from mmchat.evaluation.tasks.closed import CLOSED, NAME
    from mmchat.evaluation.tasks.definition import open_task

    if path.name == PREDICTIONS:
        return NAME, CLOSED
    if given is not None:
        return open_task(given)
    if not path.name.endswith(ENDING):
        raise UserError(f"the task of {path} is not known; name it with --task")
    return open_task(path.name.removesuffix(ENDING))


def _read(path: Path) -> Any:
    from mmchat.evaluation.tasks.answer_files import read_answers
    from mmchat.evaluation.tasks.closed import read_predictions

    return read_predictions(path) if path.name == PREDICTIONS else read_answers(path)


def _names(first: Path, second: Path) -> tuple[str, str]:
    """What tells the two apart: the last part of their paths that differs."""
    for one, other in zip(reversed(first.parts), reversed(second.parts), strict=False):
        if one != other:
            return one.removesuffix(ENDING), other.removesuffix(ENDING)
    return "A", "B"


def _images(arguments: argparse.Namespace) -> Callable[[Any], Any]:
    """The function that opens the image of a question: from the data, or from a path that the answers hold."""
    from mmchat.evaluation.tasks.definition import open_task
    from mmchat.evaluation.tasks.reading import TaskData
    from mmchat.images import load_image

    if arguments.data:
        first, _ = _pairs(arguments.first, arguments.second)[0]
        name = arguments.task or first.name.removesuffix(ENDING)
        data = TaskData(open_task(name)[1], arguments.data, arguments.image_root)
        by_id = {sample.id: sample for sample in data.samples}
        return lambda sample: data.open_image(by_id[sample.id]) if sample.id in by_id else None
    return lambda sample: load_image(sample.image) if _is_file(sample.image) else None


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False
