"""`mmchat recipe write`."""

import argparse
from pathlib import Path

from mmchat.cli.recipe.recipes import find_recipe
from mmchat.errors import UserError
from mmchat.files import write_bytes

EXAMPLE = "mmchat recipe write own/sft --out my_run.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="as `mmchat recipe list` prints it, or a .json that a recipe uses")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write; default: the recipe's file name, here")


def run(arguments: argparse.Namespace) -> None:
    recipe = find_recipe(arguments.name)
    out = arguments.out or Path(recipe.name)
    if out.exists():
        raise UserError(f"{out} exists; remove it or name another --out")
    write_bytes(out, recipe.read_bytes())
    print(out)
