"""`mmchat vision init`: a tower with a classification head, the start of a supervised run."""

import argparse
from pathlib import Path

from mmchat.command_line.options import (
    LABELLED_IMAGES,
    add_image_size,
    add_new_directory,
    add_pool,
    add_seed,
    require_empty,
)
from mmchat.command_line.quick_imports import quick_imports
from mmchat.hub import check_exists

EXAMPLE = "mmchat vision init configs/vision/tower.json --classes data/images --out runs/classify-init"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details("The head is linear and new. The result is the start of a run with `objective: classify`.")
    parser.add_argument("source", metavar="TOWER", help="tower config .json, directory, weight file or hub name")
    parser.add_argument(
        "--classes", metavar="DATA", type=Path, required=True, help=f"images that define the classes: {LABELLED_IMAGES}"
    )
    add_pool(parser)
    add_image_size(parser)
    add_seed(parser)
    add_new_directory(parser)


def run(arguments: argparse.Namespace) -> None:
    require_empty(arguments.out)
    check_exists(arguments.source, "vision tower")
    from mmchat.data.labelled_images import read_labelled

    classes = read_labelled(arguments.classes).classes
    with quick_imports():  # mistakes have been found
        import torch

        from mmchat.vision import load_tower
        from mmchat.vision.classifier import init_classifier
    torch.manual_seed(arguments.seed)
    tower = load_tower(arguments.source, image_size=arguments.image_size)
    model = init_classifier(tower, classes, arguments.pool, arguments.out)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{arguments.out}: {parameters:,} parameters, {len(classes)} classes ({', '.join(classes):.80})")
