"""What a data worker's memory grows by while it reads odd images and makes a tower's square of them."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmchat.data.image_refs import ImageFile
from mmchat.errors import UserError
from mmchat.vision.spec import Preprocessing, TowerSpec
from mmchat.vision.transforms.preprocess import preprocess

MIB = 1 << 20


def odd_image(path: Path, mode: str, size: tuple[int, int]) -> Path:
    width, height = size
    shades = np.add.outer(np.arange(height, dtype=np.uint16), np.arange(width, dtype=np.uint16))
    if mode == "I;16":
        image = Image.fromarray(shades)
    else:
        gray = Image.fromarray((shades // 4).astype(np.uint8))
        image = gray.convert(mode)
        if mode == "RGBA":
            image.putalpha(gray)
    image.save(path, **({"compress_level": 1} if path.suffix == ".png" else {}))
    return path


def growth(path: Path, fit: str) -> float:
    """Growth of the peak of resident memory in MiB, in a process that reads this image first."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
            before = _peak()
            spec = TowerSpec(336, 14, 576, 8, Preprocessing(fit=fit))
            preprocess(ImageFile(str(path.parent), path.name).open(), spec)
            os.write(write, str(_peak() - before).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as answer:
        return float(answer.read()) / 1024


def _peak() -> int:
    return int(next(line for line in Path("/proc/self/status").read_text().split("\n") if "VmHWM" in line).split()[1])


def limit(size: tuple[int, int]) -> float:
    pixels = size[0] * size[1]
    if max(size) > 10 * min(size):
        return 300
    return 200 if pixels <= 40_000_000 else 1.2 * pixels * 3 / MIB + 100


CASES = [
    *[(mode, (7300, 5400), "png") for mode in ("RGB", "RGBA", "L", "P", "1", "I;16")],
    *[("L", (5400, 7300), "jpg"), ("RGB", (7300, 5400), "jpg"), ("CMYK", (5000, 4000), "tif")],
    *[("LA", (5000, 4000), "png"), ("RGB", (100, 20_000), "png"), ("RGB", (20_000, 1), "png")],
    *[("RGBA", (12_000, 12_000), "png"), ("L", (12_000, 12_000), "png"), ("RGB", (60, 900_000), "png")],
]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured by Linux's /proc")
@pytest.mark.parametrize(("mode", "size", "suffix"), CASES, ids=lambda value: str(value))
@pytest.mark.timeout(600)
def test_growth(tmp_path, mode, size, suffix):
    path = odd_image(tmp_path / f"a.{suffix}", mode, size)
    for fit in ("shortest-edge-crop", "pad"):
        assert growth(path, fit) <= limit(size)


def test_a_source_lowers_the_limit_of_pixels(tmp_path):
    path = odd_image(tmp_path / "a.png", "L", (30, 20))
    image = ImageFile(str(tmp_path), path.name)
    assert image.open(max_pixels=600).size == (30, 20)
    with pytest.raises(UserError, match="claims 30x20 pixels, more than the limit of 599") as caught:
        image.open(max_pixels=599)
    assert caught.value.kind == "decompression_bomb"
