"""`mmchat recipe list`."""

import argparse
import shutil
import textwrap

from mmchat.cli.recipe.recipes import recipe_files, title

WIDEST = 100
"""Columns where there is no terminal; every recipe then has one line."""
EXAMPLE = "mmchat recipe list"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> None:
    recipes = {name: path for name, path in recipe_files().items() if path.suffix == ".yaml"}
    column = max(map(len, recipes)) + 2
    width = shutil.get_terminal_size((WIDEST, 24)).columns
    for name, path in recipes.items():
        print(textwrap.fill(title(path), width, initial_indent=f"{name:{column}}", subsequent_indent=" " * column))
