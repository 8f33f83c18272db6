"""How much a data worker's memory grows by while it reads odd images and makes a tower's square of them.

Every image is written, read by a process of its own that has read none before, as training reads it, and removed.
README.md explains the limits and the output.

    python bench/image_memory.py
    python bench/image_memory.py --only webp --folder /tmp/images
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from odd_images import OddImage, odd_images

from mmchat.data.image_refs import ImageFile
from mmchat.errors import UserError
from mmchat.files import write_json
from mmchat.vision.spec import Preprocessing, TowerSpec
from mmchat.vision.transforms.preprocess import preprocess

MB = 1_000_000
FITS = ("shortest-edge-crop", "pad")
STRIP_ASPECT = 10


@dataclass(frozen=True)
class Growth:
    """What one image did.

    Attributes:
        name: Of the file.
        fit: How it was made square.
        pixels: Width x height.
        megabytes: Growth of the peak of resident memory, in 10^6 bytes.
        limit: What it may be.
        refused: Why the image was not read; empty if it was.
        died: Whether the process ended without an answer.
    """

    name: str
    fit: str
    pixels: int
    megabytes: float
    limit: float
    refused: str = ""
    died: bool = False

    @property
    def is_within(self) -> bool:
        return not self.died and self.megabytes <= self.limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="images whose name contains this")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th image (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where images are written (default: a temporary folder)")
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/image_memory.json"))
    arguments = parser.parse_args()
    if arguments.write is not None:
        list(odd_images())[arguments.write].write(arguments.folder)
        return
    chosen = [(n, image) for n, image in enumerate(odd_images()) if (arguments.only or "") in image.name]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = [one for n, image in chosen[:: arguments.every] for one in measured(n, image, Path(folder))]
    write_json(arguments.out, {"date": time.strftime("%Y-%m-%d"), "images": [asdict(one) for one in found]})
    print(summary(found))
    if not all(one.is_within for one in found):
        sys.exit("images above exceed their limits")


def measured(number: int, image: OddImage, folder: Path) -> list[Growth]:
    """Write an image in another process, which would leave freed memory here, and measure it with each fit."""
    command = [sys.executable, __file__, "--write", str(number), "--folder", str(folder)]
    subprocess.run(command, check=True)
    path = folder / image.name
    found = [growth(path, image.size, fit) for fit in FITS]
    path.unlink()
    for one in found:
        print(line(one), flush=True)
    return found


def growth(path: Path, size: tuple[int, int], fit: str) -> Growth:
    """Read an image as training does, in a process that is forked for it as a data worker is."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(write, json.dumps(_read(path, fit)).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as answer:
        text = answer.read()
    megabytes, refused = json.loads(text) if text else (0.0, "")
    return Growth(path.name, fit, size[0] * size[1], megabytes, limit(size), refused, died=not text)


def _read(path: Path, fit: str) -> tuple[float, str]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before, refused = _peak(), ""
    try:
        spec = TowerSpec(336, 14, 576, 8, Preprocessing(fit=fit))
        preprocess(ImageFile(str(path.parent), path.name).open(), spec)
    except UserError as error:
        refused = str(error).removeprefix(f"image {path} ")
    return (_peak() - before) * 1024 / MB, refused


def _peak() -> int:
    """Largest resident set in KiB."""
    return int(next(line for line in Path("/proc/self/status").read_text().split("\n") if "VmHWM" in line).split()[1])


def limit(size: tuple[int, int]) -> float:
    """Megabytes that an image of this size may take."""
    pixels = size[0] * size[1]
    if max(size) > STRIP_ASPECT * min(size):
        return 300
    return 200 if pixels <= 40_000_000 else 1.2 * pixels * 3 / MB + 100


def line(one: Growth) -> str:
    verdict = "died" if one.died else one.refused or ("" if one.is_within else "TOO MUCH")
    return f"{one.megabytes:6.0f} of {one.limit:4.0f} MB  {one.name}, {one.fit}  {verdict:.150}"


def summary(found: list[Growth]) -> str:
    """Figures by kind of limit, and all images that exceed theirs."""
    read = [one for one in found if not one.refused]
    refused = len({one.name for one in found if one.refused})
    lines = [f"{len({one.name for one in found})} images, {refused} of them refused by name"]
    for limits in sorted({one.limit for one in read}):
        largest = max((one for one in read if one.limit == limits), key=lambda one: one.megabytes)
        lines.append(f"limit {limits:.0f} MB: at most {largest.megabytes:.0f} MB ({largest.name}, {largest.fit})")
    lines += [f"exceeds: {line(one)}" for one in found if not one.is_within]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
