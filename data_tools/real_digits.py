"""Write scikit-learn's 1,797 real handwritten digits as images: to learn from, and to score on.

    train/     a folder for each digit, "seven/0042.png": the scans that a model may learn from, as they are
    test/      the same of the scans that scores are given on
    test.json  the images of test/ with all captions that are true of them: for retrieval
    captions.json, captions/   seeded variants of the scans in train/, bent and moved as handwriting is, each with a
                               caption in words

The scans of 8 x 8 are enlarged. Scores are on the last 297; whoever chooses anything, a rate or a number of steps,
writes `--choosing 1` to 5, which leaves those out and tests on a fifth of the others. Scans come writer by writer, so
that a fifth is of hands that are not among the other four, as the last 297 are.

    python data_tools/real_digits.py --out data/digits
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from mmchat.command_line.arguments import HelpFormatter
from mmchat.command_line.errors import reporting
from mmchat.data.records import write_records
from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.progress import track
from mmchat.vision.transforms.elastic import elastic_warp

LEARNED, ALL = 1500, 1797
FIFTHS = 5
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = (
    "a handwritten {word}",
    "the digit {figure}",
    "the number {word}",
    "a scan of a {word}",
    "someone wrote a {figure}",
    "an image of the figure {figure}",
    "{word}",
    "this is a {word}, written by hand",
)


def enlarged(scan: np.ndarray, size: int) -> np.ndarray:
    """Grey values 0 to 16, float[8, 8] -> 0 to 255, float32[size, size]."""
    grey = Image.fromarray((scan * (255 / 16)).astype(np.uint8))
    return np.asarray(grey.resize((size, size), Image.Resampling.BICUBIC), np.float32)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)


def split(choosing: int | None) -> tuple[list[int], list[int]]:
    """Numbers of the scans to learn from, and to test on: the last 297, or the `choosing`-th fifth of the others."""
    if choosing is None:
        return list(range(LEARNED)), list(range(LEARNED, ALL))
    start, end = (LEARNED // FIFTHS * at for at in (choosing - 1, choosing))
    return [number for number in range(LEARNED) if not start <= number < end], list(range(start, end))


def captioned(image: str, caption: str, digit: int) -> dict:
    """A record of LLaVA's layout; its label is the digit in words."""
    text = caption.format(word=WORDS[digit], figure=digit)
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}]
    return {"id": Path(image).stem, "image": image, "label": WORDS[digit], "conversations": turns}


def write(out: Path, choosing: int | None, size: int, variants: int, strength: float, seed: int) -> None:
    require("sklearn", extra="tools")
    from sklearn.datasets import load_digits

    scans, digits = load_digits(return_X_y=True)
    images = [enlarged(scan.reshape(8, 8), size) for scan in scans]
    train, test = split(choosing)
    for folder, numbers in (("train", train), ("test", test)):
        for number in numbers:
            save(out / folder / WORDS[digits[number]] / f"{number:04}.png", images[number])
    records = [
        captioned(f"test/{WORDS[digits[number]]}/{number:04}.png", caption, digits[number])
        for number in test
        for caption in CAPTIONS
    ]
    write_records(out / "test.json", records)
    records = []
    for number in track(train, "drawing variants"):
        rng = np.random.default_rng((seed, number))
        for each in range(variants):
            name = f"captions/{number:04}-{each:02}.png"
            save(out / name, elastic_warp(images[number], rng, strength))
            records.append(captioned(name, str(rng.choice(CAPTIONS)), digits[number]))
    write_records(out / "captions.json", records)
    print(f"{out}: {len(train)} scans to learn from, {len(records)} variants, {len(test)} to test on")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--choosing",
        type=int,
        choices=range(1, FIFTHS + 1),
        help="leave the last 297 out and test on this fifth of the others: to choose settings by",
    )
    parser.add_argument("--size", type=int, default=32, help="side of an image in pixels")
    parser.add_argument("--variants", type=int, default=60, help="variants of each scan to learn from")
    parser.add_argument("--strength", type=float, default=1.0, help="how far variants depart from the scan")
    parser.add_argument("--seed", type=int, default=0, help="of the variants and their captions")
    args = parser.parse_args(argv)
    if args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"{args.out} exists and is not empty; remove it or name another --out")
    write(args.out, args.choosing, args.size, args.variants, args.strength, args.seed)


if __name__ == "__main__":
    with reporting():
        main()
