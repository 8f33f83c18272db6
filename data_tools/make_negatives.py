"""Images without text, so that a tower that learns to read does not read text where there is none.

    python data_tools/make_negatives.py --images photos --out data/negatives --count 5000

    OUT/negatives.jsonl  asks for the text; the answer is Vary's sentence

Random square crops of the images. Without --images the two photographs that scikit-learn ships are used, which is
enough to try a recipe but not to train.
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
from synthetic.options import add_count_option, add_prompt_option, generation_parser, print_preview
from synthetic.records import image_path, make_record

from mmchat.command_line.arguments import positive
from mmchat.command_line.errors import reporting
from mmchat.errors import UserError
from mmchat.images import IMAGE_SUFFIXES, load_image

ANSWER = "It's an image of nature."
"""One of Vary's answers for natural images (arXiv:2312.06109, section 3.2.2)."""
SMALLEST = 0.4
"""Smallest crop, as a fraction of the shorter side."""


@dataclass(frozen=True)
class NegativeMaker:
    """Makes crop `n`. images: paths; side: of the crop in pixels."""

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
        negative = make_record(f"negatives/{number:07}", name, self.prompt, ANSWER)
        return Sample({"negatives": [negative]}, {name: file.getvalue()})


def find_images(folder: Path | None) -> list[str]:
    """Paths of the images in a folder, or of scikit-learn's photographs. Raises UserError if there are none."""
    root = folder or Path(str(files("sklearn.datasets") / "images"))
    found = sorted(str(path) for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise UserError(f"--images {root} contains no image")
    return found


def main(argv: list[str] | None = None) -> None:
    parser = generation_parser(__doc__, "crops", preview=12)
    parser.add_argument("--images", type=Path, help="folder of natural images without text")
    add_count_option(parser, "crops")
    parser.add_argument("--size", type=positive, default=1024, help="side of a crop in pixels")
    add_prompt_option(parser)
    arguments = parser.parse_args(argv)
    with reporting():
        make_negatives(arguments)


def make_negatives(arguments: argparse.Namespace) -> None:
    settings = {"seed": arguments.seed, "side": arguments.size, "prompt": arguments.prompt}
    images = find_images(arguments.images)
    plan = {"program": "make_negatives", **settings, "images": [[Path(p).name, Path(p).stat().st_size] for p in images]}
    make = NegativeMaker(images=images, **settings)
    written = generate_dataset(make, arguments.count, arguments.out, plan, arguments.workers)
    print_preview(arguments, "negatives", cell=240, columns=4, lines=1)
    print(f"{arguments.out}: {written['negatives']:,} crops of {len(images):,} images")


if __name__ == "__main__":
    main()
