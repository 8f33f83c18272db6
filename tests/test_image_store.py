"""A large image is decoded and becomes RGB in one piece of memory: the pixels are those that Pillow gives otherwise."""

import io
from dataclasses import replace

import numpy as np
import pytest
from odd_images import UNREAD, OddImage, odd_images
from PIL import Image

from mmchat.errors import UserError
from mmchat.image_limits import ImageLimitError, ImageLimits
from mmchat.images import MAX_PIXELS, as_rgb, image_size, load_image, rgb, webp
from mmchat.images.cost import bytes_per_pixel

KINDS = {
    (image.suffix, image.mode, str(image.options), image.orientation): image
    for image in odd_images()
    if (image.suffix, image.mode) not in [*UNREAD, ("tif", "YCbCr")]
}
TURNED = [
    OddImage(suffix, mode, (1, 1), orientation=orientation)
    for orientation in range(2, 9)
    for suffix, mode in (("png", "P+alpha"), ("tif", "RGB"), ("tif", "L"), ("tif", "I;16"), ("webp", "RGBA"))
]


def written(image, folder, size=(71, 60)):
    return replace(image, size=size).write(folder)


@pytest.mark.parametrize("image", [*KINDS.values(), *TURNED], ids=lambda image: image.name)
def test_large_images_have_the_pixels_of_small_ones(tmp_path, monkeypatch, image):
    for size in ((71, 60), (3, 40), (90, 7)):
        path = written(image, tmp_path, size)
        expected = np.asarray(as_rgb(Image.open(io.BytesIO(path.read_bytes()))))
        assert np.array_equal(expected, np.asarray(load_image(path)))
        with monkeypatch.context() as patch:
            patch.setattr(rgb, "BAND_PIXELS", 200)
            for large in (load_image(path), load_image(path.read_bytes())):
                assert large.mode == "RGB" and not large.has_transparency_data
                assert np.array_equal(expected, np.asarray(large))
        assert image_size(path) == expected.shape[1::-1]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_a_tiff_on_its_side_opened_by_its_name(tmp_path, mode):
    """Pillow maps such a file and takes its width for its height."""
    path = written(OddImage("tif", mode, (1, 1), orientation=6), tmp_path)
    upright = written(OddImage("tif", mode, (1, 1)), tmp_path)
    expected = np.asarray(load_image(upright).transpose(Image.Transpose.ROTATE_270))
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(as_rgb(image)), expected)
        assert image.filename == str(path)
    assert np.array_equal(np.asarray(load_image(path)), expected)


def test_a_webp_without_libwebp(tmp_path, monkeypatch):
    path = written(OddImage("webp", "RGBA", (1, 1)), tmp_path)
    expected = np.asarray(load_image(path))
    monkeypatch.setattr(rgb, "BAND_PIXELS", 200)
    monkeypatch.setattr(webp, "_library", lambda: None)
    assert np.array_equal(np.asarray(load_image(path)), expected)


def pixels_or_none(data):
    try:
        return np.asarray(load_image(data)).tobytes()
    except UserError as error:
        assert "broken or cut off" in str(error)


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_a_damaged_webp_is_refused_where_pillow_refuses_it(tmp_path, monkeypatch, options):
    data = written(OddImage("webp", "RGBA", (1, 1), options), tmp_path, (300, 200)).read_bytes()
    draw = np.random.default_rng(0)
    results = []
    for _ in range(20):
        damaged = bytearray(data)
        place = int(draw.integers(40, len(data) - 40))
        damaged[place : place + 40] = draw.bytes(40)
        with monkeypatch.context() as patch:
            expected = pixels_or_none(bytes(damaged))
            patch.setattr(rgb, "BAND_PIXELS", 200)
            assert pixels_or_none(bytes(damaged)) == expected
        results.append(expected is None)
    assert any(results)
    assert pixels_or_none(data[: len(data) // 2]) is None


COSTS = [
    *[("png", "RGBA", {}, 4), ("jpg", "RGB", {}, 4), ("jpg", "RGB", {"progressive": True}, 7)],
    *[("jpg", "CMYK", {"progressive": True}, 12), ("jpg", "L", {"progressive": True}, 4), ("webp", "RGB", {}, 4)],
    *[("webp", "RGBA", {}, 7), ("webp", "RGB", {"lossless": True}, 9), ("webp", "RGB", {"animated": True}, 12)],
    *[("avif", "RGB", {}, 12), ("avif", "RGBA", {}, 16), ("jp2", "L", {}, 6), ("jp2", "RGB", {}, 19)],
]


@pytest.mark.parametrize(("suffix", "mode", "options", "cost"), COSTS)
def test_a_format_counts_with_what_its_decoder_takes(tmp_path, suffix, mode, options, cost):
    path = written(OddImage(suffix, mode, (1, 1), options), tmp_path, (64, 64))
    with Image.open(path) as image:
        assert bytes_per_pixel(image) == cost
    least = -(-64 * 64 * cost // 4)
    assert load_image(path, max_pixels=least).size == (64, 64)
    for read in (load_image, image_size):
        with pytest.raises(UserError, match="claims 64x64 pixels, more than the limit of ") as caught:
            read(path, max_pixels=least - 1)
        assert caught.value.kind == "decompression_bomb" and (cost == 4) == ("bytes per pixel" not in str(caught.value))
    limits = ImageLimits(3, 1 << 20, least - 1, MAX_PIXELS)
    with pytest.raises(ImageLimitError) as refused:
        limits.admit(path.read_bytes(), "x")
    assert refused.value.code == "too_many_pixels"
