"""Generate the quickstart's data: images of coloured handwritten digits with captions, statements and conversations.

The digits are the 1,797 scans that scikit-learn ships, so nothing is downloaded. Each split uses its own scans, so
scores on `heldout` are on handwriting that is not in the training data.

    captions    one digit per image, one caption ("a red 7"): trains the tower
    statements  one to four digits, mostly few, and sentences about them: trains the projector
    lookups     two or three different digits, and a question about each: trains the assistant before `train`
    train       scenes of one to four digits with conversations, some with statements
    dev         conversations about other scans: for choosing hyperparameters
    named       one digit of the last 297 scans per image, labelled "a red 7": zero-shot test of the tower
    heldout     conversations about the last 297 scans: for reporting
    closeups    one large digit per image, labelled; only if `--only` names it: starts a tower at half the image size

Records are in LLaVA's format, plus `kinds` (one per question) and, in `dev` and `heldout`, the SHA-256 of the image's
raw pixels. `--verify` uses it to check that a regenerated test split equals a published one. Texts are in
digit_questions.py.

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
from digit_questions import (
    COLORS,
    STATEMENT_PROMPT,
    Question,
    SceneDigit,
    all_different,
    candidates,
    clearly_ordered,
    converse,
    listing,
    lookups,
    statements,
)
from PIL import Image

from mmchat.command_line.errors import reporting
from mmchat.data.records import write_records
from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.progress import track

TRAINING = (0, 1200)
GLYPHS = dict.fromkeys(("captions", "closeups", "statements", "lookups", "train"), TRAINING)
# `heldout` is written last: if its file exists, all others do, too. The quickstart relies on this.
GLYPHS |= {"dev": (1200, 1500), "named": (1500, 1797), "heldout": (1500, 1797)}
# Relative frequency of one, two, ... digits in an image.
NUMBERS = {"captions": (1,), "closeups": (1,), "statements": (4, 3, 2, 1), "lookups": (0, 1, 1), "named": (1,)}
SCENE_NUMBERS = (3, 5, 5, 5)
# Share of images with statements; the other images of `statements` have a description.
STATED = {"statements": 0.65, "train": 0.25}
HASHED = ("dev", "heldout")
LABELLED = ("closeups", "named")
# Digits of a split are so many times larger than elsewhere.
ZOOM = {"closeups": 1.8}
# What a scene of a split must be; another is drawn until it is.
REQUIRED = {"statements": clearly_ordered, "lookups": all_different}
FADES_ON_LIGHT = ("yellow", "white")
FADES_ON_DARK = ("black",)


@functools.cache
def glyphs() -> tuple[list[Image.Image], list[int]]:
    """Scikit-learn's scans as 10x10 grey images (8x8 with a blank border), and their digits."""
    require("sklearn", extra="tools")
    from sklearn.datasets import load_digits

    data = load_digits()
    scans = np.pad(np.clip(data.images * 16, 0, 255).astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    return [Image.fromarray(scan) for scan in scans], [int(digit) for digit in data.target]


def compose(
    rng: random.Random, glyph_range: tuple[int, int], numbers: tuple[int, ...] = SCENE_NUMBERS, zoom: float = 1.0
) -> tuple[bool, tuple[SceneDigit, ...]]:
    """A random scene: whether the background is light, and digits whose squares do not overlap, from left to right.

    Args:
        glyph_range: range of scans to choose from.
        numbers: relative frequency of one, two, ... digits.
        zoom: factor of the digits' size.
    """
    light = rng.random() < 0.5
    palette = [name for name in COLORS if name not in (FADES_ON_LIGHT if light else FADES_ON_DARK)]
    number = rng.choices(range(1, len(numbers) + 1), numbers)[0]
    things: list[SceneDigit] = []
    for _ in range(number):
        glyph = rng.randrange(*glyph_range)
        repeat = things and rng.random() < 0.25
        color = rng.choice(things).color if repeat else rng.choice(palette)
        size, trials = zoom * rng.uniform(0.29, 0.56 - 0.03 * number), 0
        while True:  # a digit that does not fit shrinks
            x, y = rng.uniform(size / 2, 1 - size / 2), rng.uniform(size / 2, 1 - size / 2)
            if all(max(abs(x - t.x), abs(y - t.y)) >= (size + t.size) / 2 for t in things):
                break
            trials += 1
            if trials % 20 == 0:
                size = max(0.25, size * 0.93)
            if trials == 400:  # three digits leave no room for a fourth: start again
                return compose(rng, glyph_range, numbers, zoom)
        things.append(SceneDigit(glyphs()[1][glyph], color, x, y, size, glyph))
    return light, tuple(sorted(things, key=lambda t: t.x))


def draw(rng: random.Random, light: bool, things: tuple[SceneDigit, ...], side: int) -> Image.Image:
    """The RGB image: a tinted gradient with each scan slightly rotated, sheared, scaled and coloured."""
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


def make_questions(rng: random.Random, split: str, things: tuple[SceneDigit, ...]) -> list[Question]:
    """Questions and answers of the record of an image."""
    if split == "captions":
        return [Question("caption", STATEMENT_PROMPT, listing(things), listing(things))]
    if split == "lookups":
        return lookups(rng, things)
    if rng.random() < STATED.get(split, 0.0):
        said = statements(rng, things)
        return [Question("statements", STATEMENT_PROMPT, said, said)]
    return candidates(rng, things)[:1] if split == "statements" else converse(rng, things)


def make_sample(split: str, index: int, seed: int, side: int) -> tuple[Image.Image, dict]:
    """Image and record `index` of a split, a pure function of the four arguments."""
    rng = random.Random(f"{seed}/{split}/{index}")
    light, things = compose(rng, GLYPHS[split], NUMBERS.get(split, SCENE_NUMBERS), ZOOM.get(split, 1.0))
    while split in REQUIRED and not REQUIRED[split](things):
        light, things = compose(rng, GLYPHS[split], NUMBERS[split])
    image = draw(rng, light, things, side)
    name = f"{split}/{index:06d}"
    if split in LABELLED:
        return image, {"id": name, "image": f"{name}.png", "label": listing(things)}
    questions = make_questions(rng, split, things)
    turns = []
    for number, question in enumerate(questions):
        turns.append({"from": "human", "value": "<image>\n" * (number == 0) + question.text})
        turns.append({"from": "gpt", "value": question.answer})
    record = {"id": name, "image": f"{name}.png", "conversations": turns, "kinds": [q.kind for q in questions]}
    if split in HASHED:
        record["sha256"] = hashlib.sha256(image.tobytes()).hexdigest()
    return image, record


def save_sample(out: Path, split: str, seed: int, side: int, index: int) -> dict:
    image, record = make_sample(split, index, seed, side)
    image.save(out / record["image"], compress_level=1)
    return record


def write_split(
    out: Path, split: str, number: int, seed: int, side: int, workers: int, reference: Path | None = None
) -> list[dict]:
    """Write `out/<split>/*.png` and `out/<split>.json`; the bytes do not depend on the number of workers.

    Args:
        reference: records that the split must equal; otherwise `out/<split>.json` is not written.

    Raises:
        UserError: the split differs from `reference`.
    """
    (out / split).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        stream = pool.map(functools.partial(save_sample, out, split, seed, side), range(number), chunksize=64)
        records = list(track(stream, f"drawing {split}", total=number))
    if reference:
        verify(records, reference)
    write_records(out / f"{split}.json", records)
    return records


def verify(made: list[dict], reference: Path) -> None:
    """Check that a held-out split equals the one in `reference`, in every record and pixel.

    Raises:
        UserError: it differs.
    """
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
                    "Scores on it are not comparable with published ones. Use the seed and size of the "
                    "reference; if they are the same, other versions of Pillow or scikit-learn drew other pixels."
                )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = lambda name, default, text: parser.add_argument(  # noqa: E731
        name, type=type(default), default=default, help=f"{text} (default: {default})"
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    option("--seed", 0, "random seed")
    option("--captions", 51200, "single digits with a caption")
    option("--statements", 20000, "images of one to four digits with statements about them")
    option("--lookups", 10000, "scenes of two or three different digits")
    option("--train", 40000, "training scenes")
    option("--dev", 400, "scenes for choosing hyperparameters")
    option("--named", 400, "labelled single digits for testing the tower")
    option("--heldout", 400, "held-out test scenes")
    option("--closeups", 20000, "labelled close-ups of single digits")
    option("--size", 64, "side of an image in pixels")
    option("--workers", 2, "worker processes")
    parser.add_argument("--verify", type=Path, help="fail if the held-out split differs from the one in this file")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(GLYPHS),
        default=[split for split in GLYPHS if split != "closeups"],
        help="splits to write (default: all except closeups)",
    )
    arguments = parser.parse_args(argv)
    for split in arguments.only:
        reference = arguments.verify if split == "heldout" else None
        write_split(
            arguments.out,
            split,
            getattr(arguments, split),
            arguments.seed,
            arguments.size,
            arguments.workers,
            reference,
        )


if __name__ == "__main__":
    with reporting():
        main()
