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
    command.add_argument("--pictures", type=int, default=24, help="pictures in the grid")
    command.set_defaults(run=run_report)


def run_report(arguments: argparse.Namespace) -> None:
    from mmchat.evaluation.report import write_report

    print(write_report(arguments.run_dir, arguments.stage, arguments.pictures))
