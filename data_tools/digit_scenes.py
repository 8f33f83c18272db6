"""Make the quickstart's data: images of coloured handwritten digits, and what can be said about them.

The digits are the 1,797 scans that scikit-learn ships, so nothing is downloaded. Each split draws
from its own scans: what a model scores on `heldout` it scores on handwriting it never saw.

    captions    one digit an image, one caption ("a red 7"): what the tower learns from
    statements  one to four digits, few more often, and sentences about them: what the projector learns from
    train       scenes of one to four digits: conversations, and again statements
    dev         conversations about other scans: choose hyperparameters here
    named       one digit of the last 297 scans an image, labelled "a red 7": what the tower is asked in words
    heldout     conversations about the last 297 scans: report from here

Every record is LLaVA's, plus `kinds` (one per question) and, outside the training splits, the
SHA-256 of the image's raw pixels, so that `--verify` can tell whether a regenerated test is the
same test. What is said is in digit_questions.py.

    python data_tools/digit_scenes.py --out data/digits
"""

import argparse
import functools
import hashlib
import json
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from digit_questions import COLORS, STATE, Question, Thing, candidates, converse, in_a_row, listing, statements
from PIL import Image

from mmchat.command_line.errors import reporting
from mmchat.data.records import write_records
from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.progress import track

TRAINING = (0, 1200)
GLYPHS = dict.fromkeys(("captions", "statements", "train"), TRAINING)
# `heldout` last: whoever finds its file, as the quickstart does, may rely on all others.
GLYPHS |= {"dev": (1200, 1500), "named": (1500, 1797), "heldout": (1500, 1797)}
# How often an image holds one, two, ... digits.
NUMBERS = {"captions": (1,), "statements": (4, 3, 2, 1), "named": (1,)}
SCENE_NUMBERS = (3, 5, 5, 5)
# Share of the images that come with statements; the others of `statements` come with a description.
STATED = {"statements": 0.65, "train": 0.25}
HASHED = ("dev", "heldout")
FADES_ON_LIGHT = ("yellow", "white")
FADES_ON_DARK = ("black",)


@functools.cache
def glyphs() -> tuple[list[Image.Image], list[int]]:
    """Scikit-learn's scans as 10x10 grey images (8x8 and a blank border), and the digits they show."""
    require("sklearn", extra="tools")
    from sklearn.datasets import load_digits

    data = load_digits()
    scans = np.pad(np.clip(data.images * 16, 0, 255).astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    return [Image.fromarray(scan) for scan in scans], [int(digit) for digit in data.target]


def compose(
    rng: random.Random, glyph_range: tuple[int, int], numbers: tuple[int, ...] = SCENE_NUMBERS
) -> tuple[bool, tuple[Thing, ...]]:
    """A background (light or dark) and things whose squares do not overlap, left to right.

    numbers: how often there are one, two, ... things.
    """
    light = rng.random() < 0.5
    palette = [name for name in COLORS if name not in (FADES_ON_LIGHT if light else FADES_ON_DARK)]
    number = rng.choices(range(1, len(numbers) + 1), numbers)[0]
    things: list[Thing] = []
    for _ in range(number):
        glyph = rng.randrange(*glyph_range)
        repeat = things and rng.random() < 0.25
        color = rng.choice(things).color if repeat else rng.choice(palette)
        size, trials = rng.uniform(0.29, 0.56 - 0.03 * number), 0
        while True:  # a thing that finds no room shrinks; at 0.25 four always fit
            x, y = rng.uniform(size / 2, 1 - size / 2), rng.uniform(size / 2, 1 - size / 2)
            if all(max(abs(x - t.x), abs(y - t.y)) >= (size + t.size) / 2 for t in things):
                break
            trials += 1
            if trials % 20 == 0:
                size = max(0.25, size * 0.93)
            if trials == 400:  # three things stand so that no fourth fits: begin anew
                return compose(rng, glyph_range, numbers)
        things.append(Thing(glyphs()[1][glyph], color, x, y, size, glyph))
    return light, tuple(sorted(things, key=lambda t: t.x))


def draw(rng: random.Random, light: bool, things: tuple[Thing, ...], side: int) -> Image.Image:
    """The RGB image: a tinted gradient, and on it each scan turned, sheared, stretched and dyed a little."""
    low = 200 if light else 8
    tint = [rng.uniform(low, low + 40) for _ in range(3)]
    slope_x, slope_y = rng.uniform(-14, 14), rng.uniform(-14, 14)
    ramp = np.linspace(-0.5, 0.5, side)
    shade = slope_x * ramp[None, :, None] + slope_y * ramp[:, None, None]
    image = Image.fromarray(np.clip(np.array(tint) + shade, 0, 255).astype(np.uint8))
    for thing in things:
        pixels = round(thing.size * side)
        turn, shear = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
        zoom_x, zoom_y = rng.uniform(0.85, 1.1), rng.uniform(0.92, 1.04)
        scale = 10 / pixels
        a, b = scale / zoom_x, scale * (shear - turn)
        d, e = scale * turn, scale / zoom_y
        middle = pixels / 2
        warp = (a, b, 5 - (a + b) * middle, d, e, 5 - (d + e) * middle)
        ink = glyphs()[0][thing.glyph].transform(
            (pixels, pixels), Image.Transform.AFFINE, warp, Image.Resampling.BICUBIC
        )
        strength = rng.uniform(1.1, 1.7)
        mask = ink.point([min(255, max(0, int((v - 24) * strength))) for v in range(256)])
        dye = tuple(min(255, max(0, v + rng.randint(-14, 14))) for v in COLORS[thing.color])
        image.paste(dye, (round(thing.x * side - middle), round(thing.y * side - middle)), mask)
    return image


def talk(rng: random.Random, split: str, things: tuple[Thing, ...]) -> list[Question]:
    """What the record of an image asks and answers."""
    if split == "captions":
        return [Question("caption", STATE, listing(things), listing(things))]
    if rng.random() < STATED.get(split, 0.0):
        said = statements(rng, things)
        return [Question("statements", STATE, said, said)]
    return candidates(rng, things)[:1] if split == "statements" else converse(rng, things)


def make(split: str, index: int, seed: int, side: int) -> tuple[Image.Image, dict]:
    """Image and record `index` of a split: a pure function of the four arguments."""
    rng = random.Random(f"{seed}/{split}/{index}")
    light, things = compose(rng, GLYPHS[split], NUMBERS.get(split, SCENE_NUMBERS))
    while split == "statements" and not in_a_row(things):
        light, things = compose(rng, GLYPHS[split], NUMBERS[split])
    image = draw(rng, light, things, side)
    name = f"{split}/{index:06d}"
    if split == "named":
        return image, {"id": name, "image": f"{name}.png", "label": listing(things)}
    asked = talk(rng, split, things)
    turns = []
    for number, question in enumerate(asked):
        turns.append({"from": "human", "value": "<image>\n" * (number == 0) + question.text})
        turns.append({"from": "gpt", "value": question.answer})
    record = {"id": name, "image": f"{name}.png", "conversations": turns, "kinds": [q.kind for q in asked]}
    if split in HASHED:
        record["sha256"] = hashlib.sha256(image.tobytes()).hexdigest()
    return image, record


def save(out: Path, split: str, seed: int, side: int, index: int) -> dict:
    image, record = make(split, index, seed, side)
    image.save(out / record["image"], compress_level=1)
    return record


def write_split(
    out: Path, split: str, number: int, seed: int, side: int, workers: int, reference: Path | None = None
) -> list[dict]:
    """Write `out/<split>/*.png` and, if it is the split in `reference`, `out/<split>.json`.

    The same bytes for any number of workers.
    """
    (out / split).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        stream = pool.map(functools.partial(save, out, split, seed, side), range(number), chunksize=64)
        records = list(track(stream, f"drawing {split}", total=number))
    if reference:
        verify(records, reference)
    write_records(out / f"{split}.json", records)
    return records


def verify(made: list[dict], reference: Path) -> None:
    """Refuse a held-out split that is not, record by record and pixel by pixel, the one in `reference`."""
    expected = json.loads(reference.read_text())
    if len(made) != len(expected):
        raise UserError(
            f"{reference} has {len(expected)} records, but {len(made)} were made: use --heldout {len(expected)}."
        )
    for ours, theirs in zip(made, expected, strict=True):
        for key in theirs:
            if ours.get(key) != theirs[key]:
                raise UserError(
                    f"{ours['id']}: `{key}` differs from {reference}: made {ours.get(key)!r}, not {theirs[key]!r}. "
                    "Scores on it do not compare with published ones. Use the seed and size that made the "
                    "reference; if they are the same, another Pillow or scikit-learn drew other pixels."
                )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = lambda name, default, text: parser.add_argument(  # noqa: E731
        name, type=type(default), default=default, help=f"{text} (default: {default})"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    option("--seed", 0, "another seed, other images")
    option("--captions", 51200, "single digits with a caption")
    option("--statements", 20000, "images of one to four digits with statements about them")
    option("--train", 40000, "scenes to learn from")
    option("--dev", 400, "scenes to choose hyperparameters on")
    option("--named", 400, "labelled single digits to score the tower on")
    option("--heldout", 400, "scenes to report from")
    option("--size", 64, "side of an image in pixels")
    option("--workers", 2, "processes that draw")
    parser.add_argument("--verify", type=Path, help="refuse a held-out split that differs from this file's")
    args = parser.parse_args(argv)
    for split in GLYPHS:
        reference = args.verify if split == "heldout" else None
        write_split(args.out, split, getattr(args, split), args.seed, args.size, args.workers, reference)


if __name__ == "__main__":
    with reporting():
        main()
