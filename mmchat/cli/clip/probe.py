"""`mmchat clip probe`: a linear classifier on the frozen features of a tower."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmchat.command_line.options import LABELLED_IMAGES, add_image_size, add_pool, add_seed
from mmchat.command_line.quick_imports import quick_imports
from mmchat.errors import UserError
from mmchat.hub import check_exists

if TYPE_CHECKING:
    from mmchat.evaluation.probe import ProbeResult

EXAMPLE = "mmchat clip probe runs/digits/clip/model --train data/digits/train --test data/digits/test"
DETAILS = """The protocol is CLIP's (arXiv:2103.00020, appendix A.3). The table also has the scores of raw pixels
and of the same tower with random weights."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(DETAILS)
    parser.add_argument(
        "towers", metavar="TOWER", nargs="+", help="directory, weight file, hub name or tower config .json"
    )
    parser.add_argument(
        "--train",
        metavar="DATA",
        type=Path,
        required=True,
        help=f"images for fitting and validation: {LABELLED_IMAGES}",
    )
    parser.add_argument("--test", metavar="DATA", type=Path, required=True, help="images for the score, likewise")
    add_pool(parser)
    add_image_size(parser)
    add_seed(parser, "the validation split and of the random towers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")


def run(arguments: argparse.Namespace) -> None:
    results = probe_towers(arguments)
    from mmchat.evaluation.probe import probe_table
    from mmchat.files import write_json
    from mmchat.terminal import PlainConsole

    PlainConsole().print(probe_table(results))
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


def probe_towers(arguments: argparse.Namespace) -> list["ProbeResult"]:
    """Every tower with its two baselines, random weights and raw pixels; a baseline that towers share comes once."""
    from mmchat.data.labelled_images import read_labelled

    for source in arguments.towers:
        check_exists(source, "vision tower")
    sets = [read_labelled(path) for path in (arguments.train, arguments.test)]
    if sets[0].classes != sets[1].classes:
        odd = sorted(set(sets[0].classes) ^ set(sets[1].classes))
        raise UserError(f"{arguments.train} and {arguments.test} have not the same classes: {', '.join(odd[:8])}")
    with quick_imports():  # mistakes have been found
        import numpy as np
        import torch

        from mmchat.evaluation.probe import probe, raw_pixels, tower_features, tower_pixels
        from mmchat.vision import build_tower, load_tower
    towers = [load_tower(source, image_size=arguments.image_size) for source in arguments.towers]
    images = [[image.open() for image in labelled.images] for labelled in sets]
    targets = [np.array(labelled.targets) for labelled in sets]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: list[ProbeResult] = []

    def add(name: str, features: list[np.ndarray]) -> None:
        train, test = zip(features, targets, strict=True)
        results.append(probe(name, train, test, arguments.seed))

    configs_done, inputs_done = [], []
    for source, tower in zip(arguments.towers, towers, strict=True):
        pixels = [tower_pixels(each, tower.spec) for each in images]
        add(source, [tower_features(tower.to(device), each, arguments.pool) for each in pixels])
        if tower.config not in configs_done:
            configs_done.append(tower.config)
            torch.manual_seed(arguments.seed)
            random = build_tower(tower.config).to(device)
            add(f"{source}, random weights", [tower_features(random, each, arguments.pool) for each in pixels])
        size, fit = tower.spec.image_size, tower.spec.preprocessing.fit
        if (size, fit) not in inputs_done:
            inputs_done.append((size, fit))
            add(f"raw pixels, {size} x {size}, {fit}", [raw_pixels(each) for each in pixels])
    return results
