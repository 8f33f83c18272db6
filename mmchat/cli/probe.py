"""`mmchat clip probe`: what a linear classifier reads out of a tower's frozen features."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmchat.evaluation.probe import ProbeResult


def add_commands(add) -> None:
    command = add(
        "clip probe",
        "linear probe of a tower by CLIP's protocol, beside raw pixels and the same tower with random weights",
        "mmchat clip probe runs/digits/clip/model --train data/digits/train --test data/digits/test",
    )
    command.add_argument("towers", metavar="TOWER", nargs="+", help="directory, weight file, hub name or config .json")
    labelled = "a folder of images for each class, or a table with an image and a label column"
    command.add_argument(
        "--train", metavar="DATA", type=Path, required=True, help=f"to fit and to choose by: {labelled}"
    )
    command.add_argument("--test", metavar="DATA", type=Path, required=True, help="to score on: likewise")
    command.add_argument(
        "--pool",
        default="pooled",
        choices=["pooled", "mean", "max"],
        help="an image's feature: the tower's pooled output, or mean or maximum of its patches",
    )
    command.add_argument("--image-size", type=int, help="side of what the tower sees; not given: the tower's own")
    command.add_argument("--seed", type=int, default=0, help="of the validation split and of the random towers")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    command.set_defaults(run=run_probe)


def run_probe(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from mmchat.evaluation.probe import probe_table
    from mmchat.files import write_json

    results = results_of(arguments)
    Console().print(probe_table(results))
    if arguments.json:
        figures = [
            {
                "features": result.name,
                "accuracy": result.accuracy,
                "interval": result.interval,
                "hits": result.hits,
                "total": result.total,
                "regularisation": result.regularisation,
            }
            for result in results
        ]
        write_json(arguments.json, figures)
        print(arguments.json)


def results_of(arguments: argparse.Namespace) -> list["ProbeResult"]:
    """Every tower, and what it sees and computes without training; a baseline that two towers share comes once."""
    import numpy as np
    import torch

    from mmchat.data.labelled_images import read_labelled
    from mmchat.errors import UserError
    from mmchat.evaluation.probe import probe, raw_pixels, seen, tower_features
    from mmchat.vision import build_tower, load_tower

    towers = [load_tower(source, image_size=arguments.image_size) for source in arguments.towers]
    sets = [read_labelled(path) for path in (arguments.train, arguments.test)]
    if sets[0].classes != sets[1].classes:
        odd = sorted(set(sets[0].classes) ^ set(sets[1].classes))
        raise UserError(f"{arguments.train} and {arguments.test} have not the same classes: {', '.join(odd[:8])}")
    images = [[image.open() for image in labelled.images] for labelled in sets]
    targets = [np.array(labelled.targets) for labelled in sets]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: list[ProbeResult] = []

    def add(name: str, features: list[np.ndarray]) -> None:
        train, test = zip(features, targets, strict=True)
        results.append(probe(name, train, test, arguments.seed))

    shapes, sizes = [], []
    for source, tower in zip(arguments.towers, towers, strict=True):
        pixels = [seen(each, tower.spec) for each in images]
        add(source, [tower_features(tower.to(device), each, arguments.pool) for each in pixels])
        if tower.config not in shapes:
            shapes.append(tower.config)
            torch.manual_seed(arguments.seed)
            random = build_tower(tower.config).to(device)
            add(f"{source}, random weights", [tower_features(random, each, arguments.pool) for each in pixels])
        seen_as = (tower.spec.image_size, tower.spec.preprocessing.fit)
        if seen_as not in sizes:
            sizes.append(seen_as)
            name = f"raw pixels, {seen_as[0]} x {seen_as[0]}, {seen_as[1]}"
            add(name, [raw_pixels(each) for each in pixels])
    return results
