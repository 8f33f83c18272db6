"""Recipes: the YAML configs in `configs/`, and the JSON files of model shapes that they use."""

import difflib
from pathlib import Path

from mmchat.bundled import folder
from mmchat.errors import UserError


def recipe_files() -> dict[str, Path]:
    """Name -> file: "quickstart/sft" for a YAML config, "quickstart/tower.json" for a JSON file."""
    root = folder("configs")
    files = sorted(path for path in root.rglob("*") if path.suffix in (".yaml", ".json"))
    return {str(path.relative_to(root)).removesuffix(".yaml"): path for path in files}


def find_recipe(name: str) -> Path:
    """The file of a recipe. `configs/quickstart/sft.yaml` is also understood.

    Raises:
        UserError: there is no such recipe; names the nearest.
    """
    files = recipe_files()
    short = name.removeprefix("configs/").removesuffix(".yaml")
    if short not in files:
        near = difflib.get_close_matches(short, files, n=1, cutoff=0.0)
        raise UserError(f"there is no recipe {name!r}; the nearest is {near[0]!r} (see `mmchat recipe list`)")
    return files[short]


def title(path: Path) -> str:
    """The first sentence of the comment that a config begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("# "):
            break
        comment.append(line[2:])
    sentence, stop, _ = " ".join(comment).partition(". ")
    return sentence + ("." if stop else "")
