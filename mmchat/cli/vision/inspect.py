"""`mmchat vision inspect`: what a tower is, what it sees of an image, and the features it computes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmchat.command_line.options import add_image_size, add_trust_torchscript, layer_indices
from mmchat.command_line.quick_imports import quick_imports
from mmchat.hub import check_exists

if TYPE_CHECKING:
    from rich.table import Table

    from mmchat.vision.inspect import Inspection

EXAMPLE = "mmchat vision inspect openai/clip-vit-base-patch16 --layer -2 --image photo.jpg --out runs/inspect"
DETAILS = """Prints family, sizes, weights and preprocessing. With --image it also writes, into --out,
  seen.png       the image after preprocessing
  features.png   three principal components of its patch features, as colours
  inspect.png    both side by side"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(DETAILS)
    parser.add_argument("source", metavar="TOWER", help="directory, weight file, hub name or tower config .json")
    parser.add_argument(
        "--layer",
        type=layer_indices,
        metavar="INDEX",
        help="hidden layer to take features from, or several to concatenate (--layer=-2,-5); default: the tower's own",
    )
    add_image_size(parser)
    add_trust_torchscript(parser)
    parser.add_argument("--image", type=Path, metavar="FILE", help="image to show as the tower sees it")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write; default: NAME.inspect, for image NAME"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to this file")


def run(arguments: argparse.Namespace) -> None:
    from mmchat.errors import UserError
    from mmchat.files import write_json
    from mmchat.images import load_image

    if arguments.out is not None and arguments.image is None:
        raise UserError("--out is where images are written; name one with --image")
    image = load_image(arguments.image) if arguments.image else None
    check_exists(arguments.source, "vision tower")
    with quick_imports():  # mistakes have been found
        from mmchat.terminal import PlainConsole
        from mmchat.vision import load_tower
        from mmchat.vision.inspect import inspect_tower, write_images
    trusted = arguments.trust_torchscript
    settings = {"layer": arguments.layer} if arguments.layer is not None else {}
    tower = load_tower(arguments.source, image_size=arguments.image_size, trust_torchscript=trusted, **settings)
    found = inspect_tower(arguments.source, tower, trusted)
    console = PlainConsole(highlight=False)
    console.print(inspection_table(found))
    if arguments.json:
        write_json(arguments.json, found.to_dict())
    if image is not None:
        for path in write_images(tower, image, arguments.out or Path(f"{arguments.image.stem}.inspect")):
            print(path)


def inspection_table(found: "Inspection") -> "Table":
    from rich.table import Table

    from mmchat.vision.inspect import describe

    side = found.image_size // found.patch_size
    rows = {
        "family": found.family,
        "format": found.format,
        "image": f"{found.image_size} x {found.image_size} pixels, {side} x {side} patches of {found.patch_size}",
        "features": f"{found.tokens} tokens{', class token in front' * found.class_token}, {found.width} wide",
    }
    if found.preprocessing.fit == "native":
        most = found.preprocessing.max_patches
        rows["image"] = f"of any proportions, at most {most} patches of {found.patch_size} pixels"
        rows["features"] = f"1 token for each patch, {found.width} wide"
    if found.layer is not None:
        numbers = [found.layer] if isinstance(found.layer, int) else found.layer
        layer = f"{', '.join(map(str, numbers))}{', normed' * found.final_norm}"
        rows["layer"] = f"{layer} (of {found.blocks} blocks {found.blocks_run} run)"
    rows["parameters"] = f"{found.parameters:,}, of which {found.parameters_run:,} run"
    rows["weights"] = ", ".join(found.dtypes)
    rows["an image is"] = "\n".join(describe(found.preprocessing, found.image_size))
    table = Table(title=found.source, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table
