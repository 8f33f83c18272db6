"""Speed of image preprocessing on one thread: transformers' CLIPImageProcessorPil (A) and mmchat (B).

From the bytes of a JPEG to normalised float32[3, size, size], image by image. B must equal A bit for bit; with `draft`
(mmchat.data.config) it must be close to A. Each variant runs in its own process, and the variants alternate. README.md
explains the output.

    python bench/image_preprocessing.py
    python bench/image_preprocessing.py --images 4 --rounds 1
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from side_by_side.random_images import draw_clouds

from mmchat.command_line.quiet import quiet_libraries
from mmchat.data.dataset import DRAFT_OF_SQUARE
from mmchat.files import write_json
from mmchat.images import load_image
from mmchat.vision import TowerSpec, normalise, preprocess

VARIANTS = ("transformers", "ours", "ours_drafted")
SIZES = ((640, 480), (3000, 2000))
SQUARES = (224, 336)
GRAIN = 6
"""Standard deviation of the noise on an image, in 8-bit grey levels. With it, JPEGs of quality 90 are about as large as
a camera's: 2.5 bits per pixel."""
DRAFT_TOLERANCE = 0.005
"""Largest mean absolute difference of a draft, in units of the normalised pixel."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU seconds for each variant and image size")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/image_preprocessing.json"))
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.variant:
        measure(arguments.variant, arguments.folder, arguments.seconds)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, arguments.images)
        rounds = [
            {variant: run(variant, folder, arguments.seconds) for variant in VARIANTS} for _ in range(arguments.rounds)
        ]
        differences = {case.name: compare(folder, case) for case in CASES}
    lines = [summary(case, rounds, differences[case.name]) for case in CASES]
    write_json(arguments.out, {"date": time.strftime("%Y-%m-%d"), "rounds": rounds, "differences": differences})
    print("\n".join(lines))
    if any(found["ours"] or found["ours_drafted"] > DRAFT_TOLERANCE for found in differences.values()):
        sys.exit(f"ours must equal A bit for bit, and a draft must be within {DRAFT_TOLERANCE}: found {differences}")


@dataclass(frozen=True)
class Case:
    """Images of one size for a tower of one input size."""

    size: tuple[int, int]
    square: int

    @property
    def name(self) -> str:
        return f"{self.size[0]}x{self.size[1]} to {self.square}"

    def images(self, folder: Path) -> list[bytes]:
        return [path.read_bytes() for path in sorted(folder.glob(f"{self.size[0]}x{self.size[1]}-*.jpg"))]


CASES = [Case(size, square) for size, square in product(SIZES, SQUARES)]


def write_images(folder: Path, count: int) -> None:
    """JPEGs of smooth colours with noise like a photograph's grain."""
    rng = np.random.default_rng(0)
    for (width, height), number in product(SIZES, range(count)):
        clouds = np.asarray(draw_clouds(rng, (width, height)))
        grain = rng.normal(0, GRAIN, (height, width, 1))
        image = Image.fromarray(np.clip(clouds + grain, 0, 255).astype(np.uint8))
        image.save(folder / f"{width}x{height}-{number:03}.jpg", quality=90)


def run(variant: str, folder: Path, seconds: float) -> dict[str, float]:
    """Images per second of CPU time, by case."""
    command = [sys.executable, __file__, "--variant", variant, "--folder", str(folder), "--seconds", str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(variant: str, folder: Path, seconds: float) -> None:
    rates = {}
    for case in CASES:
        read, images = reader(variant, case.square), case.images(folder)
        read(images[0])
        done, begun = 0, time.process_time()
        while time.process_time() - begun < seconds:
            read(images[done % len(images)])
            done += 1
        rates[case.name] = done / (time.process_time() - begun)
    print(json.dumps(rates))


def reader(variant: str, square: int):
    """A function from the bytes of a JPEG to float32[1, 3, square, square], an array or a tensor."""
    if variant == "transformers":
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        clip = CLIPImageProcessorPil(
            size={"shortest_edge": square}, crop_size={"height": square, "width": square}, do_convert_rgb=True
        )
        return lambda data: clip(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"]
    spec = TowerSpec(image_size=square, patch_size=14, tokens=(square // 14) ** 2, dim=1024)
    draft = DRAFT_OF_SQUARE * square if variant == "ours_drafted" else None
    return lambda data: normalise(preprocess(load_image(data, draft=draft), spec), spec)


def compare(folder: Path, case: Case) -> dict[str, float]:
    """Mean absolute difference from A over all images."""
    readers = {variant: reader(variant, case.square) for variant in VARIANTS}
    pixels = {variant: np.concatenate(list(map(read, case.images(folder)))) for variant, read in readers.items()}
    return {variant: float(np.abs(pixels[variant] - pixels["transformers"]).mean()) for variant in VARIANTS[1:]}


def summary(case: Case, rounds: list[dict[str, dict[str, float]]], differences: dict[str, float]) -> str:
    rates = {variant: median(one[variant][case.name] for one in rounds) for variant in VARIANTS}
    a, ours, drafted = (rates[variant] for variant in VARIANTS)
    equal = "bit-equal" if not differences["ours"] else f"differs by {differences['ours']:.1e}"
    return (
        f"{case.name}: {ours / a:.2f} x the images/s of A ({ours:.0f} against {a:.0f}), {equal}; "
        f"with draft {drafted / a:.2f} x, mean difference {differences['ours_drafted']:.4f}"
    )


if __name__ == "__main__":
    main()
