"""Make the quickstart's data: pictures of coloured handwritten digits, and conversations about them.

The digits are the 1,797 scans that scikit-learn ships, so nothing is downloaded. Each split draws
from its own scans: what a model scores on `heldout` it scores on handwriting it never saw.

    captions       one digit a picture, one caption ("a red 7"): what the tower learns from
    descriptions   one to four digits, few more often, and their list: what the projector learns from
    train          scenes of one to four digits with several questions each
    dev            the same with other scans: choose hyperparameters here
    heldout        the same with the last 297 scans: report from here

Every record is LLaVA's, plus `kinds` (one per question) and, outside the training splits, the
SHA-256 of the picture's raw pixels, so that `--verify` can tell whether a regenerated test is the
same test. No question of a conversation gives another's answer away; see `converse`.

    python data_tools/digit_scenes.py --out data/digits
"""

import argparse
import functools
import hashlib
import itertools
import json
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from mmchat.data.records import write_records
from mmchat.errors import UserError
from mmchat.progress import track

TRAINING = (0, 1200)
GLYPHS = dict.fromkeys(("captions", "descriptions", "train"), TRAINING)
GLYPHS |= {"dev": (1200, 1500), "heldout": (1500, 1797)}
# How often a picture holds one, two, ... digits.
NUMBERS = {"captions": (1,), "descriptions": (4, 3, 2, 1)}
SCENE_NUMBERS = (3, 5, 5, 5)
HASHED = ("dev", "heldout")
COLORS = {
    "red": (222, 36, 36),
    "orange": (250, 140, 20),
    "yellow": (245, 228, 50),
    "green": (30, 158, 60),
    "blue": (52, 100, 240),
    "purple": (160, 60, 205),
    "white": (240, 240, 240),
    "black": (18, 18, 18),
}
FADES_ON_LIGHT = ("yellow", "white")
FADES_ON_DARK = ("black",)
PLACES = {"leftmost": "left", "rightmost": "right", "highest": "top", "lowest": "bottom"}
PHRASES = {
    "describe": ("Describe the picture.", "What is in the picture?", "List the digits from left to right."),
    "count": ("How many digits are there?", "How many digits are in the picture?", "Count the digits."),
    "color_of_digit": ("What color is the {}?", "Which color does the {} have?", "Name the color of the {}."),
    "digit_of_color": ("Which digit is {}?", "What is the {} digit?", "Read the {} digit."),
    "place": ("Which digit is farthest to the {}?", "What digit is nearest the {} edge?", "Read the digit at the {}."),
    "largest": ("Which digit is drawn largest?", "Read the largest drawing.", "What digit is drawn biggest?"),
    "smallest": ("Which digit is drawn smallest?", "Read the smallest drawing.", "What digit is drawn tiniest?"),
    "has_digit": ("Is there a {}?", "Does the picture show a {}?", "Can you see a {}?"),
    "count_color": ("How many digits are {}?", "How many {} digits are there?", "Count the {} digits."),
}
# Answers say what they answer before they answer it, so that a reader, and a small model, know what the value means.
SENTENCES = {
    "count": "the number of digits is {answer}",
    "color_of_digit": "the {slot} is {answer}",
    "digit_of_color": "the {slot} digit is {answer}",
    "has_digit": "the {slot} is {answer}",
    "count_color": "the number of {slot} digits is {answer}",
    **{kind: f"the {kind} digit is {{answer}}" for kind in (*PLACES, "largest", "smallest")},
}
# How eagerly a conversation takes up each kind it could ask: the scarcer a kind's scenes, the more.
EAGERNESS = {"count": 0.5, "color_of_digit": 1.2, "digit_of_color": 1.4, "largest": 3.0, "smallest": 3.0}


@dataclass(frozen=True)
class Thing:
    """One digit of a scene. Centre and size (the side of its square) are fractions of the picture's side."""

    digit: int
    color: str
    x: float
    y: float
    size: float
    glyph: int = 0


@dataclass(frozen=True)
class Question:
    """`sentence` is what the assistant says, `answer` the value in it.

    `mentions`: the places in the scene's tuple of the things that question and answer speak of.
    """

    kind: str
    text: str
    answer: str
    sentence: str
    mentions: frozenset[int] = frozenset()


@functools.cache
def glyphs() -> tuple[list[Image.Image], list[int]]:
    """Scikit-learn's scans as 10x10 grey pictures (8x8 and a blank border), and the digits they show."""
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
    """The RGB picture: a tinted gradient, and on it each scan turned, sheared, stretched and dyed a little."""
    low = 200 if light else 8
    tint = [rng.uniform(low, low + 40) for _ in range(3)]
    slope_x, slope_y = rng.uniform(-14, 14), rng.uniform(-14, 14)
    ramp = np.linspace(-0.5, 0.5, side)
    shade = slope_x * ramp[None, :, None] + slope_y * ramp[:, None, None]
    picture = Image.fromarray(np.clip(np.array(tint) + shade, 0, 255).astype(np.uint8))
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
        picture.paste(dye, (round(thing.x * side - middle), round(thing.y * side - middle)), mask)
    return picture


def in_a_row(things: tuple[Thing, ...]) -> bool:
    """Whether the order from left to right is beyond doubt."""
    return all(b.x - a.x >= 0.08 for a, b in itertools.pairwise(things))


def listing(things: tuple[Thing, ...]) -> str:
    """'a red 7, a blue 3 and a white 1', in the things' order."""
    names = [f"{'an' if t.color == 'orange' else 'a'} {t.color} {t.digit}" for t in things]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def candidates(rng: random.Random, things: tuple[Thing, ...]) -> list[Question]:
    """One question of each kind that this scene answers without doubt (clear margins, no ties)."""
    everything, found = range(len(things)), []

    def ask(kind: str, answer: object, mentions: list[int], slot: object = "", phrases: str = "") -> None:
        text = rng.choice(PHRASES[phrases or kind]).format(slot)
        sentence = SENTENCES.get(kind, "{answer}").format(slot=slot, answer=answer)
        found.append(Question(kind, text, str(answer), sentence, frozenset(mentions)))

    def extreme(kind: str, measure: Callable[[Thing], float], clear: Callable[[float, float], bool]) -> None:
        first, second = sorted(everything, key=lambda i: measure(things[i]))[:2]
        if clear(measure(things[first]), measure(things[second])):
            ask(kind, things[first].digit, [first], PLACES.get(kind, ""), "place" if kind in PLACES else "")

    def holders(attribute: str, value: object) -> list[int]:
        return [i for i in everything if getattr(things[i], attribute) == value]

    if in_a_row(things):
        ask("describe", listing(things), list(everything))
    ask("count", len(things), [])
    for kind, known, asked in (("color_of_digit", "digit", "color"), ("digit_of_color", "color", "digit")):
        single = [i for i in everything if len(holders(known, getattr(things[i], known))) == 1]
        if single:
            i = rng.choice(single)
            ask(kind, getattr(things[i], asked), [i], getattr(things[i], known))
    if len(things) > 1:
        apart = lambda a, b: b - a >= 0.1  # noqa: E731
        extreme("leftmost", lambda t: t.x, apart)
        extreme("rightmost", lambda t: -t.x, apart)
        extreme("highest", lambda t: t.y, apart)
        extreme("lowest", lambda t: -t.y, apart)
        extreme("smallest", lambda t: t.size, lambda a, b: b >= 1.2 * a)
        extreme("largest", lambda t: -t.size, lambda a, b: a <= 1.2 * b)
    present = {t.digit for t in things}
    digit = rng.choice(sorted(present if rng.random() < 0.65 else set(range(10)) - present))
    ask("has_digit", "present" if digit in present else "absent", holders("digit", digit), digit)
    by_number: dict[int, list[str]] = {}
    for color in COLORS:
        by_number.setdefault(len(holders("color", color)), []).append(color)
    number = 0 if rng.random() < 0.2 else rng.choice(sorted(by_number.keys() - {0}))
    color = rng.choice(by_number[number])
    ask("count_color", len(holders("color", color)), holders("color", color), color)
    return found


def converse(rng: random.Random, things: tuple[Thing, ...]) -> list[Question]:
    """Up to five questions in any order, none of which is answered by the rest.

    Questions of one conversation speak of different things. A description, which speaks of all,
    stands alone. A count goes with at most three things spoken of (the fourth would give it away),
    and if it goes with a question about absence, one thing stays unspoken of.
    """
    found = candidates(rng, things)
    if found[0].kind == "describe" and rng.random() < 0.42:
        return found[:1]
    found = [q for q in found if q.kind != "describe"]
    found.sort(key=lambda q: rng.random() ** (1 / EAGERNESS.get(q.kind, 1.0)), reverse=True)
    wanted, chosen = rng.choice((2, 3, 4, 5)), []
    for question in found:
        trial = [*chosen, question]
        kinds = {q.kind for q in trial}
        spoken = frozenset().union(*(q.mentions for q in trial))
        disjoint = len(spoken) == sum(len(q.mentions) for q in trial)
        absence = kinds & {"has_digit", "count_color"}
        most = 4 if "count" not in kinds else len(things) - 1 if absence else 3
        if len(chosen) < wanted and disjoint and (len(spoken) <= most or len(trial) == 1):
            chosen = trial
    return rng.sample(chosen, len(chosen))


def make(split: str, index: int, seed: int, side: int) -> tuple[Image.Image, dict]:
    """Picture and record `index` of a split: a pure function of the four arguments."""
    rng = random.Random(f"{seed}/{split}/{index}")
    light, things = compose(rng, GLYPHS[split], NUMBERS.get(split, SCENE_NUMBERS))
    while split == "descriptions" and not in_a_row(things):
        light, things = compose(rng, GLYPHS[split], NUMBERS[split])
    picture = draw(rng, light, things, side)
    name = f"{split}/{index:06d}"
    asked = candidates(rng, things)[:1] if split in NUMBERS else converse(rng, things)
    turns = []
    for number, question in enumerate(asked):
        turns.append({"from": "human", "value": "<image>\n" * (number == 0) + question.text})
        turns.append({"from": "gpt", "value": question.sentence})
    record = {"id": name, "image": f"{name}.png", "conversations": turns, "kinds": [q.kind for q in asked]}
    if split in HASHED:
        record["sha256"] = hashlib.sha256(picture.tobytes()).hexdigest()
    return picture, record


def save(out: Path, split: str, seed: int, side: int, index: int) -> dict:
    picture, record = make(split, index, seed, side)
    picture.save(out / record["image"], compress_level=1)
    return record


def write_split(out: Path, split: str, number: int, seed: int, side: int, workers: int) -> list[dict]:
    """Write `out/<split>/*.png` and `out/<split>.json`; the same bytes for any number of workers."""
    (out / split).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        stream = pool.map(functools.partial(save, out, split, seed, side), range(number), chunksize=64)
        records = list(track(stream, f"drawing {split}", total=number))
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
    option("--seed", 0, "another seed, other pictures")
    option("--captions", 20000, "single digits with a caption")
    option("--descriptions", 20000, "pictures of one to four digits with a description")
    option("--train", 20000, "scenes to learn from")
    option("--dev", 400, "scenes to choose hyperparameters on")
    option("--heldout", 400, "scenes to report from")
    option("--size", 64, "side of a picture in pixels")
    option("--workers", 2, "processes that draw")
    parser.add_argument("--verify", type=Path, help="refuse a held-out split that differs from this file's")
    args = parser.parse_args(argv)
    for split in GLYPHS:
        records = write_split(args.out, split, getattr(args, split), args.seed, args.size, args.workers)
    if args.verify:
        verify(records, args.verify)


if __name__ == "__main__":
    main()
