"""Recipes: the YAML configs in `configs/`, and the JSON files of model shapes that they use."""

from pathlib import Path

from mmchat.bundled import folder
from mmchat.errors import UserError, nearest


def recipe_files() -> dict[str, Path]:
    """Name -> file: "quickstart/sft" for a YAML config, "quickstart/tower.json" for a JSON file."""
    root = folder("configs")
    files = sorted(path for path in root.rglob("*") if path.suffix in (".yaml", ".json"))
    return {str(path.relative_to(root)).removesuffix(".yaml"): path for path in files}


def find_recipe(name: str) -> Path:
    """The file of a recipe. `configs/quickstart/sft.yaml` is also understood.

    Raises:
        UserError: there is no such recipe; names those that end so, or the nearest.
    """
    files = recipe_files()
    short = name.removeprefix("configs/").removesuffix(".yaml")
    if short not in files:
        same_end = ", ".join(other for other in files if other.endswith(f"/{short}"))
        near = nearest(short, files)
        hint = f"; there are {same_end}" if same_end else f"; the nearest is {near!r}" if near else ""
        raise UserError(f"there is no recipe {name!r}{hint} (see `mmchat recipe list`)")
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
