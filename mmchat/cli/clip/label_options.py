"""Options of `mmchat clip classify` and `mmchat clip eval`: the labels, and the prompts that put them into words."""

import argparse
from pathlib import Path

from mmchat.contrastive.prompts import GENERAL_PROMPTS, PROMPTS, check_prompts
from mmchat.data.labelled_images import ClassNames, parse_class_names, read_class_names
from mmchat.errors import UserError


def add_label_options(parser: argparse.ArgumentParser) -> None:
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", metavar="A,B,C", help="labels, separated by commas")
    labels.add_argument(
        "--labels-file",
        type=Path,
        metavar="FILE",
        help="text file with one label per line, or .json that maps the class names of the data to words",
    )
    parser.add_argument(
        "--prompts",
        action="append",
        metavar="TEXT",
        help='text of a label, with {} in its place; repeat for an ensemble; default: "a photo of a {}."',
    )
    parser.add_argument("--ensemble", action="store_true", help="use the seven general prompts of the CLIP authors")
    add_truncate(parser)


def add_truncate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long; without it an error")


def read_labels(arguments: argparse.Namespace) -> ClassNames | None:
    """The labels that were given, or None."""
    if arguments.labels is not None:
        return parse_class_names(arguments.labels.split(","), "--labels")
    return read_class_names(arguments.labels_file) if arguments.labels_file else None


def read_prompts(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The prompts that were chosen.

    Raises:
        UserError: two sets were chosen, or a prompt does not hold {} once.
    """
    if arguments.ensemble and arguments.prompts:
        raise UserError("--ensemble is a set of prompts, and --prompts names others: give one of them")
    prompts = GENERAL_PROMPTS if arguments.ensemble else tuple(arguments.prompts or PROMPTS)
    check_prompts(prompts)
    return prompts
