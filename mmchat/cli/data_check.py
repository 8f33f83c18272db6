"""`mmchat data check`: what is wrong with a data set, and which of its records are sound."""

import argparse
from pathlib import Path

from mmchat.cli.data_source import add_source_arguments, open_processor, read_source_arguments

EXIT_FOUND_ERRORS = 1

MEANING = """Every record and every image is examined. Into --out are written
  quarantine.jsonl   one line an error: where, id, kind, reason and the record; errors must not be trained on
  warnings.jsonl     the same of what is kept and told: turned, tiny or look-alike images, odd spellings, ...
  clean.npz          the sound records (one file for each source of a run); --data.index trains on them only
  report.html, .md   counts, examples with images, distributions, samples, and what was not checked
  findings.json      the counts, flat

A pass that was stopped goes on where it was; a finished one starts anew.

exit status: 0 no errors, training may start; 1 errors were found: training would stop at them, with clean.npz it
may start; 2 a mistake in what was asked
"""


def add_commands(add) -> None:
    check = add(
        "data check",
        "find what is wrong with a data set, and write which of its records are sound",
        "mmchat data check data/quickstart/train.json --model runs/quickstart/model "
        "--against data/quickstart/heldout.json",
    )
    check.description = f"{check.description}\n\n{MEANING}"
    add_source_arguments(check)
    check.add_argument(
        "--against", metavar="EVAL", nargs="+", action="extend", default=[], help="evaluation sets that must not leak"
    )
    check.add_argument("--against-image-root", help="folder of their images; not given: their own")
    check.add_argument("--out", type=Path, help="folder to write; not given: the source's name and .check, here")
    check.add_argument("--workers", type=int, help="processes, 0 for none beside this one; not given: one per core")
    check.add_argument("--examples", type=int, default=6, help="findings of each kind that the reports show")
    check.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace) -> None:
    data, model, fit = read_source_arguments(arguments)
    from rich.console import Console

    from mmchat.data.config import SourceConfig
    from mmchat.data.doctor.report import write_reports
    from mmchat.data.doctor.run import CheckRequest, check, explain_write_errors, file_name
    from mmchat.data.doctor.terminal import print_result
    from mmchat.data.doctor.wording import next_command

    out = arguments.out or Path(f"{file_name(Path(arguments.source).stem)}.check")
    root = arguments.against_image_root
    against = tuple(
        SourceConfig(path=path, image_root=root, allow_http=arguments.allow_http) for path in arguments.against
    )
    processor = open_processor(model, fit) if model else None
    result = check(CheckRequest(data, out, against, processor, arguments.workers, arguments.examples))
    with explain_write_errors(out):
        reports = write_reports(result)
        result.partial.delete()
    files = [out / "quarantine.jsonl", out / "warnings.jsonl", *result.clean, *reports, out / "findings.json"]
    is_run = Path(arguments.source).suffix in (".yaml", ".yml")
    command = next_command(result, arguments.source, is_run)
    print_result(Console(), result, [str(file) for file in files], command)
    if not result.sound:
        raise SystemExit(EXIT_FOUND_ERRORS)
