"""`mmchat caption`: one JSON line per image."""

import argparse
from pathlib import Path

from mmchat.command_line.options import add_batch_size, add_max_new_tokens, add_model_directory
from mmchat.images import find_images

EXAMPLE = "mmchat caption runs/quickstart/model data/quickstart/heldout --out captions.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details("Run it again after an interruption: images that have a line in --out are skipped.")
    add_model_directory(parser)
    parser.add_argument(
        "paths", metavar="PATH", type=Path, nargs="+", help="images, or folders, which are searched recursively"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="JSON lines: path and caption, or path and error"
    )
    parser.add_argument("--prompt", default="Describe the image.", metavar="TEXT", help="prompt for every image")
    add_batch_size(parser, 8)
    add_max_new_tokens(parser, 128, "caption")


def run(arguments: argparse.Namespace) -> None:
    files = find_images(arguments.paths)
    from mmchat.inference.captioning import caption_files
    from mmchat.inference.generator import Generator

    generator = Generator(arguments.checkpoint)
    summary = caption_files(
        generator, files, arguments.out, arguments.prompt, arguments.batch_size, arguments.max_new_tokens
    )
    print(
        f"{summary.done} captioned, {summary.failed} could not be read, {summary.skipped} were done before: "
        f"{arguments.out}"
    )
