"""`mmchat caption`: one JSON line per image."""

import argparse
import shlex
from pathlib import Path

from mmchat.cli.job_options import (
    RESUME,
    add_overwrite,
    add_sources,
    add_workers,
    claim_output,
    fetcher,
    open_engine,
    saying_how_to_resume,
    writing,
)
from mmchat.command_line.options import add_max_new_tokens

EXAMPLE = "mmchat caption runs/quickstart/model data/quickstart/heldout --out captions.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(RESUME.format("images"))
    add_sources(parser, "images")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=".jsonl: path and caption, or path and error; or .parquet",
    )
    parser.add_argument(
        "--prompt",
        default="Describe the image.",
        metavar="TEXT",
        help="prompt for every image; {field} stands for a field of its record, {path} for its path",
    )
    parser.add_argument(
        "--keep", action="append", default=[], metavar="FIELD", help="repeat this field of the record in the line"
    )
    beside = parser.add_mutually_exclusive_group()
    beside.add_argument("--sidecar", action="store_true", help="also write every caption into a .txt next to its image")
    beside.add_argument("--sidecar-dir", type=Path, metavar="DIR", help="the same in a folder, at the images' paths")
    add_workers(parser, 16, "images", ("ray", "vllm"))
    add_max_new_tokens(parser, 128, "caption")
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> None:
    from mmchat.inference.captioning import CAPTIONING, CaptionTask
    from mmchat.inference.jobs.job import run_job
    from mmchat.inference.jobs.outputs import Sidecars, journal_of, write_parquet
    from mmchat.inference.jobs.prompts import PromptTemplate, with_prompts
    from mmchat.inference.jobs.sources import Options, Sources

    journal = journal_of(arguments.out, (".parquet",))
    sources = Sources(arguments.paths, Options(fetch=fetcher(arguments), image_root=arguments.image_root))
    items = with_prompts(sources, PromptTemplate(arguments.prompt), tuple(arguments.keep))
    origin = claim_output(arguments, journal, {"prompt": arguments.prompt, "max_new_tokens": arguments.max_new_tokens})
    sidecars = Sidecars(arguments.sidecar_dir, "caption")
    on_line = None
    if arguments.sidecar or arguments.sidecar_dir is not None:
        items, on_line = sidecars.claim(items), sidecars.write
    task = CaptionTask(arguments.max_new_tokens)
    with (
        saying_how_to_resume(journal),
        open_engine(arguments, task, journal) as engine,
        writing(arguments, journal, origin, sidecars.remove),
    ):
        summary = run_job(CAPTIONING, items, journal, engine, sources.count, on_line)
    if journal != arguments.out:
        write_parquet(journal, arguments.out, ("path", *arguments.keep, "caption"))
    print(
        f"{summary.done} captioned, {summary.failed} could not be read, {summary.skipped} were done before: "
        f"{arguments.out}"
    )
    if summary.done:
        print(summary.speed())
    if summary.failed:
        print("next: the same command tries again what could not be read; the lines with an error say why")
    elif sources.are_files:
        print(f"next: mmchat data check {shlex.quote(str(arguments.out))} --image-root .")
