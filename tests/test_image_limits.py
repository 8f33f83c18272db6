"""Limits of images that strangers send: each is checked by the header, and each refusal has its word."""

import io

import pytest
from PIL import Image

from mmchat.errors import UserError
from mmchat.image_limits import ImageLimitError, ImageLimits

LIMITS = ImageLimits(count=3, file_bytes=1000, pixels=100, total_pixels=150)


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_what_fits_is_admitted():
    assert LIMITS.admit(png(10, 10), "a") == (10, 10)
    assert LIMITS.admit(png(5, 10), "b", [(10, 10)]) == (5, 10)
    assert LIMITS.admit(png(1, 1)[:-20], "c") == (1, 1)  # only its header is read


@pytest.mark.parametrize(
    ("data", "before", "code", "message"),
    [
        (png(1, 1), [(1, 1)] * 3, "too_many_images", "4 images are more than the limit of 3"),
        (b"a" * 1001, [], "image_too_large", "image x has 1,001 bytes, more than the limit of 1,000"),
        (png(101, 1), [], "too_many_pixels", "image x has 101x1 pixels, more than the limit of 100"),
        (png(51, 1), [(100, 1)], "too_many_pixels", "with image x there are 151 pixels in all images"),
    ],
)
def test_what_exceeds_a_limit_is_refused(data, before, code, message):
    with pytest.raises(ImageLimitError, match=message) as error:
        LIMITS.admit(data, "x", before)
    assert error.value.code == code


def test_what_is_no_image_is_another_mistake():
    with pytest.raises(UserError, match="image x is not in a format") as error:
        LIMITS.admit(b"no image", "x")
    assert not isinstance(error.value, ImageLimitError)
