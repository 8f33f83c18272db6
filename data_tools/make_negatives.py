"""Images on which nothing is written, so that a tower that learned to read sees no text where there is none.

    python data_tools/make_negatives.py --images photos --out data/negatives --count 5000

    OUT/negatives.jsonl  asks for the text; the answer is Vary's sentence

Squares are cut from the images at random. Without --images they are cut from the two photographs that scikit-learn
ships, a garden palace and a flower: enough to try a recipe, too little to train by.
"""

import argparse
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from PIL import Image, ImageOps
from synthetic.generate import Sample, generate_dataset
from synthetic.preview import write_preview
from synthetic.records import image_path, record

from mmchat.command_line.arguments import HelpFormatter, OneLineParser, positive
from mmchat.command_line.errors import reporting
from mmchat.constants import OCR_PROMPT
from mmchat.errors import UserError
from mmchat.images import IMAGE_SUFFIXES, load_image

ANSWER = "It's an image of nature."
"""One of Vary's for natural images (arXiv:2312.06109, section 3.2.2)."""
SMALLEST = 0.4
"""Of the shorter side: the least that is cut out."""


@dataclass(frozen=True)
class NegativeMaker:
    """Makes square `n`. images: paths; side: in pixels."""

    seed: int
    images: Sequence[str]
    side: int
    prompt: str

    def __call__(self, number: int) -> Sample:
        rng = random.Random(f"{self.seed}/negative/{number}")
        image = load_image(Path(rng.choice(self.images)))
        cut = round(min(image.size) * rng.uniform(SMALLEST, 1))
        left, top = rng.randint(0, image.width - cut), rng.randint(0, image.height - cut)
        square = image.resize((self.side, self.side), Image.Resampling.BICUBIC, (left, top, left + cut, top + cut))
        if rng.random() < 0.5:
            square = ImageOps.mirror(square)
        file = io.BytesIO()
        square.save(file, "JPEG", quality=rng.randint(70, 95))
        name = image_path("negatives", number, "jpg")
        said = record(f"negatives/{number:07}", name, self.prompt, ANSWER)
        return Sample({"negatives": [said]}, {name: file.getvalue()})


def find_images(folder: Path | None) -> list[str]:
    """Raises UserError where there is none."""
    place = folder or Path(str(files("sklearn.datasets") / "images"))
    found = sorted(str(path) for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise UserError(f"--images {place} holds no image")
    return found


def main(words: list[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--images", type=Path, help="folder of natural images without text")
    parser.add_argument("--count", type=positive, default=1000, help="squares")
    parser.add_argument("--size", type=positive, default=1024, help="side of a square in pixels")
    parser.add_argument("--prompt", default=OCR_PROMPT, help="what the human asks below the image; may be empty")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other squares")
    parser.add_argument("--workers", type=int, default=2, help="processes that cut")
    parser.add_argument("--preview", type=int, default=12, help="squares on the sheet preview.png; 0 makes none")
    arguments = parser.parse_args(words)
    with reporting():
        make_negatives(arguments)


def make_negatives(arguments: argparse.Namespace) -> None:
    same = {"seed": arguments.seed, "side": arguments.size, "prompt": arguments.prompt}
    images = find_images(arguments.images)
    plan = {"program": "make_negatives", **same, "images": [[Path(p).name, Path(p).stat().st_size] for p in images]}
    make = NegativeMaker(images=images, **same)
    written = generate_dataset(make, arguments.count, arguments.out, plan, arguments.workers)
    if arguments.preview:
        print(f"look at {write_preview(arguments.out / 'negatives.jsonl', arguments.preview, 240, columns=4, lines=1)}")
    print(f"{arguments.out}: {written['negatives']:,} squares of {len(images):,} images")


if __name__ == "__main__":
    main()
