"""Write scikit-learn's 1,797 handwritten digits as images, split for training and testing.

    train/     a folder for each digit, "seven/0042.png": training scans, unmodified
    test/      the same for test scans
    test.json  the images of test/ with all correct captions, for retrieval
    captions.json, captions/   seeded elastic variants of the training scans, each with a caption

The scans of 8 x 8 pixels are enlarged. Scores are reported on the last 297 scans. To choose hyperparameters, use
`--fold 1` to 5, which excludes these and tests on a fifth of the others. Scans are ordered by writer, so the writers of
a fold are not in the other four, just as those of the last 297.

    python data_tools/real_digits.py --out data/digits
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from mmchat.command_line.arguments import HelpFormatter
from mmchat.command_line.errors import reporting
from mmchat.command_line.options import require_empty
from mmchat.data.records import write_records
from mmchat.extras import require
from mmchat.progress import track
from mmchat.vision.transforms.elastic import elastic_warp

TRAIN_SCANS, ALL_SCANS = 1500, 1797
FOLDS = 5
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


def enlarge(scan: np.ndarray, size: int) -> np.ndarray:
    """Grey values 0 to 16, float[8, 8] -> 0 to 255, float32[size, size]."""
    grey = Image.fromarray((scan * (255 / 16)).astype(np.uint8))
    return np.asarray(grey.resize((size, size), Image.Resampling.BICUBIC), np.float32)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)


def split(fold: int | None) -> tuple[list[int], list[int]]:
    """(training scans, test scans). The test scans are the last 297, or fold `fold` (a fifth) of the others."""
    if fold is None:
        return list(range(TRAIN_SCANS)), list(range(TRAIN_SCANS, ALL_SCANS))
    start, end = (TRAIN_SCANS // FOLDS * at for at in (fold - 1, fold))
    return [number for number in range(TRAIN_SCANS) if not start <= number < end], list(range(start, end))


def caption_record(image: str, caption: str, digit: int) -> dict:
    """A record in LLaVA's format; its label is the digit in words."""
    text = caption.format(word=WORDS[digit], figure=digit)
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}]
    return {"id": Path(image).stem, "image": image, "label": WORDS[digit], "conversations": turns}


def write_digits(out: Path, fold: int | None, size: int, variants: int, strength: float, seed: int) -> None:
    require("sklearn", extra="tools")
    from sklearn.datasets import load_digits

    scans, digits = load_digits(return_X_y=True)
    images = [enlarge(scan.reshape(8, 8), size) for scan in scans]
    train, test = split(fold)
    for folder, numbers in (("train", train), ("test", test)):
        for number in numbers:
            save(out / folder / WORDS[digits[number]] / f"{number:04}.png", images[number])
    records = [
        caption_record(f"test/{WORDS[digits[number]]}/{number:04}.png", caption, digits[number])
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
            records.append(caption_record(name, str(rng.choice(CAPTIONS)), digits[number]))
    write_records(out / "captions.json", records)
    print(f"{out}: {len(train)} training scans, {len(records)} variants, {len(test)} test scans")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--fold",
        type=int,
        choices=range(1, FOLDS + 1),
        help="exclude the last 297 and test on this fifth of the others, to choose hyperparameters",
    )
    parser.add_argument("--size", type=int, default=32, help="side of an image in pixels")
    parser.add_argument("--variants", type=int, default=60, help="variants of each training scan")
    parser.add_argument("--strength", type=float, default=1.0, help="strength of the distortion")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the variants and their captions")
    arguments = parser.parse_args(argv)
    require_empty(arguments.out)
    write_digits(arguments.out, arguments.fold, arguments.size, arguments.variants, arguments.strength, arguments.seed)


if __name__ == "__main__":
    with reporting():
        main()
