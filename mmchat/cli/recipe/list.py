"""`mmchat recipe list`."""

import argparse

from mmchat.cli.recipe.recipes import recipe_files, title

EXAMPLE = "mmchat recipe list"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> None:
    recipes = {name: path for name, path in recipe_files().items() if path.suffix == ".yaml"}
    width = max(map(len, recipes))
    for name, path in recipes.items():
        print(f"{name:{width}}  {title(path)}")
