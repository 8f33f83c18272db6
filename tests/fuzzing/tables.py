"""Damaged data files: JSON, JSONL, CSV, TSV, tar and parquet."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mmchat.cli.main import main
from mmchat.data.records import Rejected
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from tests.data import storing
from tests.fuzzing.damage import as_json, damaged_bytes, damaged_values

CHECKED = 40
"""One in so many goes through `mmchat data check`."""
EXIT_FOUND_ERRORS = 1


def write_sound(folder: Path) -> list[Path]:
    """The same eight records in every storage."""
    folder.mkdir(parents=True)
    items = []
    for number in range(8):
        names = [f"{number}-{place}.png" for place in range(number % 3)]
        for place, name in enumerate(names):
            pixels = np.random.default_rng([number, place]).integers(0, 256, (12, 15, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        question = "<image>\n" * len(names) + "What is this?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"Number {number}, é."}]
        items.append({"id": f"r{number}", "image": names, "conversations": turns})
    captions = [["image", "caption"], *([f"{number}-0.png", f"caption {number}"] for number in (1, 2, 4, 5))]
    return [
        storing.write_json(folder / "a.json", items),
        storing.write_json(folder / "indented.json", items, indent=1),
        storing.write_jsonl(folder / "b.jsonl", items),
        storing.write_csv(folder / "c.csv", captions),
        storing.write_csv(folder / "d.tsv", captions),
        storing.write_tar(folder / "e.tar", items, folder),
        storing.write_parquet(folder / "f.parquet", items, folder),
    ]


def table_case(seed: int, folder: Path) -> Callable[[int], str]:
    """Opens the file of a number and reads all its records and images, or has it checked."""
    sound = write_sound(folder / "sound")

    def case(number: int) -> str:
        draw = random.Random(f"table {seed} {number}")
        source, place = draw.choice(sound), folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        path = place / source.name
        path.write_bytes(_damaged(source, draw))
        if number % CHECKED == 0:
            _check(path, source.parent, place)
        else:
            _read(path, source.parent)
        return ""

    return case


def _damaged(source: Path, draw: random.Random) -> bytes:
    data = source.read_bytes()
    if source.suffix == ".json" and draw.random() < 0.6:
        return as_json(damaged_values(json.loads(data), draw))
    if source.suffix == ".jsonl" and draw.random() < 0.6:
        lines = data.splitlines(keepends=True)
        at = draw.randrange(len(lines))
        lines[at] = as_json(damaged_values(json.loads(lines[at]), draw)) + b"\n"
        return b"".join(lines)
    return damaged_bytes(data, draw)


def _read(path: Path, images: Path) -> None:
    source = open_source(path, images)
    rejected = None
    for record in source:
        if isinstance(record, Rejected):
            rejected = record
            continue
        for image in record.images:
            try:
                image.open()
            except UserError as error:
                rejected = error
    if rejected is not None:
        raise UserError(str(rejected))


def _check(path: Path, images: Path, place: Path) -> None:
    arguments = ["--image-root", str(images), "--out", str(place / "check"), "--workers", "0"]
    try:
        main(["data", "check", str(path), *arguments])
    except SystemExit as stopped:
        if stopped.code == EXIT_FOUND_ERRORS:
            raise UserError("errors found") from None
        raise
