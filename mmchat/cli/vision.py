"""`mmchat vision inspect`: what a tower is, what it sees of an image, and what it makes of that. `mmchat vision init`:
a tower with a head for classes, to be trained.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmchat.cli.init import claim, layers

if TYPE_CHECKING:
    from rich.table import Table

    from mmchat.vision.inspect import Inspection

MEANING = """With --image it also writes, into --out,
  seen.png       what the tower sees of that image
  features.png   the first three principal components of its patch features as red, green and blue
  inspect.png    both side by side
"""


def add_commands(add) -> None:
    inspect = add(
        "vision inspect",
        "what a vision tower is: family, sizes, weights, preprocessing; what it sees of an image",
        "mmchat vision inspect openai/clip-vit-base-patch16 --layer -2 --image photo.jpg --out runs/inspect",
    )
    inspect.description = f"{inspect.description}\n\n{MEANING}"
    inspect.add_argument("source", metavar="TOWER", help="directory, weight file, hub name or tower config .json")
    inspect.add_argument(
        "--layer",
        type=layers,
        help="feature layer, or several laid side by side: -2, or --layer=-2,-5; not given: the tower's own",
    )
    inspect.add_argument(
        "--image-size", type=int, help="side of what the tower sees, in pixels; not given: what it was trained at"
    )
    inspect.add_argument(
        "--trust-torchscript", action="store_true", help="open a TorchScript archive, which is a program"
    )
    inspect.add_argument("--image", type=Path, metavar="IMAGE", help="show what the tower sees of it")
    inspect.add_argument("--out", type=Path, help="folder to write; not given: the image's name and .inspect, here")
    inspect.add_argument("--json", type=Path, metavar="FILE", help="write every figure there, too")
    inspect.set_defaults(run=run_inspect)

    init = add(
        "vision init",
        "put a new linear head upon a tower, random or pretrained: where a supervised run (objective: classify) starts",
        "mmchat vision init configs/vision/tower.json --classes data/images --out runs/classify-init",
    )
    init.add_argument("source", metavar="TOWER", help="tower config .json, directory, weight file or hub name")
    init.add_argument(
        "--classes",
        metavar="DATA",
        type=Path,
        required=True,
        help="the labelled images to learn: a folder for each class, or a table with an image and a label column",
    )
    init.add_argument(
        "--pool",
        default="pooled",
        choices=["pooled", "mean", "max"],
        help="what the head reads: the tower's pooled output, or mean or maximum of its patches",
    )
    init.add_argument("--image-size", type=int, help="side of what the tower sees; not given: the tower's own")
    init.add_argument("--seed", type=int, default=0, help="of new weights")
    init.add_argument("--out", type=Path, required=True, help="directory to write")
    init.set_defaults(run=run_init)


def run_inspect(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from mmchat.errors import UserError
    from mmchat.files import write_json
    from mmchat.images import load_image
    from mmchat.vision import load_tower
    from mmchat.vision.inspect import inspect_tower, write_images

    if arguments.out is not None and arguments.image is None:
        raise UserError("--out is where images are written; name one with --image")
    image = load_image(arguments.image) if arguments.image else None  # a mistake is told before weights are read
    trusted = arguments.trust_torchscript
    settings = {"layer": arguments.layer} if arguments.layer is not None else {}
    tower = load_tower(arguments.source, image_size=arguments.image_size, trust_torchscript=trusted, **settings)
    found = inspect_tower(arguments.source, tower, trusted)
    console = Console(highlight=False)
    console.print(render(found))
    if arguments.json:
        write_json(arguments.json, found.to_dict())
    if image is not None:
        for path in write_images(tower, image, arguments.out or Path(f"{arguments.image.stem}.inspect")):
            print(path)


def run_init(arguments: argparse.Namespace) -> None:
    claim(arguments.out)
    import torch

    from mmchat.data.labelled_images import read_labelled
    from mmchat.vision import load_tower
    from mmchat.vision.classifier import init_classifier

    classes = read_labelled(arguments.classes).classes
    torch.manual_seed(arguments.seed)
    tower = load_tower(arguments.source, image_size=arguments.image_size)
    model = init_classifier(tower, classes, arguments.pool, arguments.out)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{arguments.out}: {parameters:,} parameters, {len(classes)} classes ({', '.join(classes):.80})")


def render(found: "Inspection") -> "Table":
    from rich.table import Table

    from mmchat.vision.inspect import in_words

    side = found.image_size // found.patch_size
    rows = {
        "family": found.family,
        "layout": found.layout,
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
    rows["an image is"] = "\n".join(in_words(found.preprocessing, found.image_size))
    table = Table(title=found.source, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table
