"""What a data worker's memory grows by while it reads odd images and makes a tower's square of them."""

from pathlib import Path

import pytest
from image_memory import FITS, growth, limit, line
from odd_images import LARGE, LIMIT, OddImage, odd_images
from PIL import Image

from mmchat.data.image_refs import ImageFile
from mmchat.errors import UserError

FAST = {"compress_level": 1}
CASES = [
    *[OddImage("png", mode, LARGE, FAST) for mode in ("RGB", "RGBA", "P+alpha", "LA", "I;16")],
    *[OddImage("jpg", mode, LARGE) for mode in ("L", "RGB", "CMYK")],
    *[OddImage("tif", mode, LARGE) for mode in ("PA", "CMYK")],
    *[OddImage("jpg", "RGB", LARGE, orientation=6), OddImage("webp", "RGB", LARGE, {"method": 0})],
    *[OddImage("png", "RGB", size, FAST) for size in ((100, 20_000), (20_000, 1), (60, 900_000))],
    *[OddImage("png", mode, LIMIT, FAST) for mode in ("L", "RGBA")],
]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured by Linux's /proc")
@pytest.mark.parametrize("image", CASES, ids=lambda image: image.name)
@pytest.mark.timeout(600)
def test_growth(tmp_path, image):
    path = image.write(tmp_path)
    for fit in FITS:
        found = growth(path, image.size, fit)
        assert found.is_within and not found.refused, line(found)


def test_the_limits():
    assert [limit(size) for size in ((7300, 5400), (20_000, 100), (10_000, 10_000))] == [200, 300, 460]


def test_there_are_odd_images_enough():
    names = [image.name for image in odd_images()]
    assert len(names) >= 200 and len(set(names)) == len(names)


def test_an_image_that_is_refused_has_grown_nothing(tmp_path):
    path = OddImage("tif", "F", (40, 30)).write(tmp_path)
    found = growth(path, (40, 30), "pad")
    assert found.refused.startswith("has 32-bit pixels") and found.is_within and not found.died


def test_a_source_lowers_the_limit_of_pixels(tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    image = ImageFile(str(tmp_path), "a.png")
    assert image.open(max_pixels=600).size == (30, 20)
    with pytest.raises(UserError, match="claims 30x20 pixels, more than the limit of 599") as caught:
        image.open(max_pixels=599)
    assert caught.value.kind == "decompression_bomb"
