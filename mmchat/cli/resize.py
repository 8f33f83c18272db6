"""`mmchat resize`: an assistant whose towers take images of another size."""

import argparse

from mmchat.command_line.options import (
    add_image_sizes,
    add_model_directory,
    add_new_directory,
    per_tower,
    require_empty,
)
from mmchat.command_line.quick_imports import quick_imports
from mmchat.files import read_json_object
from mmchat.model_kinds import ASSISTANT

EXAMPLE = "mmchat resize runs/sft/model --image-size 448 --out runs/large-init"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details("Position embeddings are adapted to the new size. Train the result before you use it.")
    add_model_directory(parser)
    add_image_sizes(parser, required=True)
    parser.add_argument(
        "--keep-positions",
        action="store_true",
        help="keep the trained positions and add new ones, for larger images of the same scale; without it, positions "
        "are interpolated, for the same images at a higher resolution",
    )
    add_new_directory(parser)


def run(arguments: argparse.Namespace) -> None:
    require_empty(arguments.out)
    directory = ASSISTANT.check_complete(arguments.checkpoint)
    towers = read_json_object(directory / "config.json").get("towers", [])
    per_tower("--image-size", arguments.image_size, len(towers))
    with quick_imports():  # mistakes have been found
        from mmchat.model.directory import load_assistant, save_assistant

    model, processor = load_assistant(directory)
    sizes = per_tower("--image-size", arguments.image_size, len(model.towers))
    model.resize_towers(sizes, arguments.keep_positions)
    processor.set_towers(model.specs, model.image_tokens)
    save_assistant(model, processor, arguments.out)
    sides = ", ".join(f"{spec.image_size} x {spec.image_size}" for spec in model.specs)
    print(f"{arguments.out}: sees {sides} pixels, {model.image_tokens} slots per view")
