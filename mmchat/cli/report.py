"""`mmchat report`: one HTML page about a run, or about several."""

import argparse
from pathlib import Path

from mmchat.command_line.arguments import positive
from mmchat.errors import UserError

EXAMPLE = "mmchat report runs/quickstart --stage runs/quickstart/tower --stage runs/quickstart/projector"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(
        "Writes report.html into the run directory. Of several runs it writes one page, runs.html: curves over each "
        "other, what differs in their configs, scores with intervals, answers side by side. A page is self-contained."
    )
    parser.add_argument(
        "run_dirs",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="run directory; scores appear after `mmchat eval ... --out RUN`",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="page about several runs; default: runs.html")
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
    if len(arguments.run_dirs) == 1:
        from mmchat.evaluation.report import write_report

        if arguments.out:
            raise UserError("--out is for the page about several runs; that about one is RUN/report.html")
        print(write_report(arguments.run_dirs[0], arguments.stage, dict(arguments.beside), arguments.images))
        return
    from mmchat.training.monitoring.runs_report import write_runs_report

    if arguments.stage or arguments.beside:
        raise UserError("--stage and --beside are for the page about one run; name all runs to compare them")
    print(write_runs_report(arguments.run_dirs, arguments.out or Path("runs.html"), arguments.images))


def named_run(text: str) -> tuple[str, Path]:
    """Type of `--beside`: NAME=RUN."""
    name, equals, run_dir = text.partition("=")
    if not (name and equals and run_dir):
        raise argparse.ArgumentTypeError(f"expected NAME=RUN, found {text!r}")
    return name, Path(run_dir)
