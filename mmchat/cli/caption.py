"""`mmchat caption`: one line of JSON per image of a folder."""

import argparse
from pathlib import Path

from mmchat.images import find_images


def add_commands(add) -> None:
    caption = add(
        "caption",
        "describe every image of files and folders, in batches; a rerun does what is missing",
        "mmchat caption runs/quickstart/model data/quickstart/heldout --out captions.jsonl",
    )
    caption.add_argument("checkpoint", metavar="CKPT", type=Path, help="model directory")
    caption.add_argument("paths", metavar="IMAGES_OR_FOLDERS", type=Path, nargs="+", help="folders are searched deeply")
    caption.add_argument("--out", type=Path, required=True, help="JSON lines: path and caption, or path and error")
    caption.add_argument("--prompt", default="Describe the image.", help="what each image is asked")
    caption.add_argument("--batch-size", type=int, default=8, help="images per forward")
    caption.add_argument("--max-new-tokens", type=int, default=128, help="longest caption")
    caption.set_defaults(run=run_caption)


def run_caption(arguments: argparse.Namespace) -> None:
    files = find_images(arguments.paths)
    from mmchat.inference.captioning import caption_files
    from mmchat.inference.generator import Generator

    generator = Generator(arguments.checkpoint)
    summary = caption_files(
        generator, files, arguments.out, arguments.prompt, arguments.batch_size, arguments.max_new_tokens
    )
    print(
        f"{summary.done} captioned, {summary.failed} could not be read, "
        f"{summary.skipped} were there already: {arguments.out}"
    )
