"""`mmchat report`: one HTML page about a run."""

import argparse
from pathlib import Path


def add_commands(add) -> None:
    command = add(
        "report",
        "write report.html: curves, figures, scores and a grid of answers, one file that needs nothing beside it",
        "mmchat report runs/quickstart --stage runs/quickstart/tower --stage runs/quickstart/projector",
    )
    command.add_argument("run_dir", metavar="RUN", type=Path, help="run directory; `mmchat eval --out RUN` adds scores")
    command.add_argument("--stage", type=Path, action="append", default=[], help="run directory of an earlier stage")
    command.add_argument(
        "--beside",
        metavar="NAME=RUN",
        type=named_run,
        action="append",
        default=[],
        help="another run whose scores on the same questions stand in a column of that name",
    )
    command.add_argument("--images", type=int, default=24, help="images in the grid")
    command.set_defaults(run=run_report)


def run_report(arguments: argparse.Namespace) -> None:
    from mmchat.evaluation.report import write_report

    print(write_report(arguments.run_dir, arguments.stage, dict(arguments.beside), arguments.images))


def named_run(text: str) -> tuple[str, Path]:
    name, equals, run = text.partition("=")
    if not (name and equals and run):
        raise argparse.ArgumentTypeError(f"expected NAME=RUN, found {text!r}")
    return name, Path(run)
