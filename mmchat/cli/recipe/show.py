"""`mmchat recipe show`."""

import argparse

from mmchat.cli.recipe.recipes import find_recipe

EXAMPLE = "mmchat recipe show own/sft"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="as `mmchat recipe list` prints it, or a .json that a recipe uses")


def run(arguments: argparse.Namespace) -> None:
    print(find_recipe(arguments.name).read_text(encoding="utf-8"), end="")
