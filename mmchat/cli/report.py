"""`mmchat report`: one HTML page about a run."""

import argparse
from pathlib import Path

from mmchat.command_line.arguments import positive

EXAMPLE = "mmchat report runs/quickstart --stage runs/quickstart/tower --stage runs/quickstart/projector"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details("Writes report.html into the run directory. The page is self-contained.")
    parser.add_argument(
        "run_dir", metavar="RUN", type=Path, help="run directory; scores appear after `mmchat eval ... --out RUN`"
    )
    parser.add_argument(
        "--stage", type=Path, action="append", default=[], metavar="RUN", help="an earlier stage; repeat for several"
    )
    parser.add_argument(
        "--beside",
        metavar="NAME=RUN",
        type=named_run,
        action="append",
        default=[],
        help="another run, scored on the same questions, to show in a column of this name; repeat for several",
    )
    parser.add_argument("--images", type=positive, default=24, metavar="N", help="images shown with their answers")


def run(arguments: argparse.Namespace) -> None:
    from mmchat.evaluation.report import write_report

    print(write_report(arguments.run_dir, arguments.stage, dict(arguments.beside), arguments.images))


def named_run(text: str) -> tuple[str, Path]:
    """Type of `--beside`: NAME=RUN."""
    name, equals, run_dir = text.partition("=")
    if not (name and equals and run_dir):
        raise argparse.ArgumentTypeError(f"expected NAME=RUN, found {text!r}")
    return name, Path(run_dir)
