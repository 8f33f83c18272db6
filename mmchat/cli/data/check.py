"""`mmchat data check`: the errors of a data set, and which of its records are sound."""

import argparse
from pathlib import Path

from mmchat.cli.data.source_options import add_source_arguments, add_workers, open_processor, read_source_arguments

EXIT_FOUND_ERRORS = 1
EXAMPLE = (
    "mmchat data check data/quickstart/train.json --model runs/quickstart/model --against data/quickstart/heldout.json"
)
DETAILS = """Every record and every image is checked. Files in --out:
  quarantine.jsonl  errors, one per line: place, id, kind, reason, record
  warnings.jsonl    the same for records that are kept: rotated, tiny or
                    near-duplicate images, odd spellings, ...
  clean.npz         the sound records, one file per source of a run;
                    `--data.index clean.npz` trains on them only
  report.html, .md  counts, examples, distributions, and what was not checked
  findings.json     all counts

An interrupted check continues where it stopped; a finished one starts over.

exit status: 0 no errors, training can start; 1 errors found: training would stop at them, but can start with
clean.npz; 2 a mistake in the arguments"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(DETAILS)
    add_source_arguments(parser)
    parser.add_argument(
        "--against",
        metavar="EVAL",
        nargs="+",
        action="extend",
        default=[],
        help="evaluation sets that must not occur in the data",
    )
    parser.add_argument("--against-image-root", metavar="DIR", help="folder of their images; default: that of EVAL")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write; default: NAME.check, for source NAME")
    add_workers(parser)
    parser.add_argument("--examples", type=int, default=6, metavar="N", help="examples of each kind in the reports")


def run(arguments: argparse.Namespace) -> None:
    data, model, fit = read_source_arguments(arguments)
    from mmchat.data.config import SourceConfig
    from mmchat.data.doctor.report import write_reports
    from mmchat.data.doctor.run import CheckRequest, check, explain_write_errors, file_name
    from mmchat.data.doctor.terminal import print_result
    from mmchat.data.doctor.wording import missing_images_hint, next_command
    from mmchat.terminal import PlainConsole

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
    following = missing_images_hint(result, arguments.source, is_run)
    if command := next_command(result, arguments.source, is_run, model):
        following.append(f"next: {command}")
        if not is_run:
            following.append("      CONFIG is yours, or a recipe: `mmchat recipe write own/pretrain` copies one")
    print_result(PlainConsole(), result, [str(file) for file in files], following)
    if not result.sound:
        raise SystemExit(EXIT_FOUND_ERRORS)
