"""Every kind of pixels becomes RGB in one way, for files and PIL images alike, or is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmchat.errors import UserError
from mmchat.images import as_rgb, image_size, load_image, rgb
from mmchat.images.formats import FORMATS, readable_formats


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def gray_png(bits: int, samples: list[int], transparent: int | None = None) -> bytes:
    """A PNG of one row of gray samples."""
    row = 0
    for sample in samples:
        row = row << bits | sample
    length = -(-bits * len(samples) // 8)
    line = (row << (8 * length - bits * len(samples))).to_bytes(length, "big")
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", len(samples), 1, bits, 0, 0, 0, 0))]
    chunks += [(b"tRNS", struct.pack(">H", transparent))] if transparent is not None else []
    chunks += [(b"IDAT", zlib.compress(b"\0" + line)), (b"IEND", b"")]
    written = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def gray_tiff(bits: int, photometric: int, data: bytes, width: int) -> bytes:
    """An uncompressed little-endian TIFF of one row."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1, 279: len(data)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def shorts(*values: int, order: str = "<") -> bytes:
    return struct.pack(f"{order}{len(values)}H", *values)


WHITE = 255
SHADES = {
    "12-bit TIFF": (gray_tiff(12, 1, bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x00]), 4), [0, 127, 255, 0]),
    "16-bit TIFF": (gray_tiff(16, 1, shorts(0, 0x8000, 0xFFFF), 3), [0, 127, 255]),
    "16-bit TIFF, white is zero": (gray_tiff(16, 0, shorts(0, 0x8000, 0xFFFF), 3), [255, 127, 0]),
    "8-bit TIFF, white is zero": (gray_tiff(8, 0, bytes([0, 100, 255]), 3), [255, 155, 0]),
    "1-bit PNG": (gray_png(1, [0, 1, 0], 0), [WHITE, 255, WHITE]),
    "2-bit PNG": (gray_png(2, [0, 1, 2, 3], 1), [0, WHITE, 170, 255]),
    "2-bit PNG, opaque": (gray_png(2, [0, 1, 2, 3]), [0, 85, 170, 255]),
    "4-bit PNG": (gray_png(4, [0, 10, 15, 3], 10), [0, WHITE, 255, 51]),
    "8-bit PNG": (gray_png(8, [0, 10, 255, 3], 10), [0, WHITE, 255, 3]),
    "16-bit PNG": (gray_png(16, [0, 0x8000, 0x8001, 0xFFFF], 0x8000), [0, WHITE, 127, 255]),
    "16-bit PGM": (b"P5 3 1 65535\n" + shorts(0, 0x8000, 0xFFFF, order=">"), [0, 127, 255]),
    "12-bit PGM": (b"P5 3 1 4095\n" + shorts(0, 2048, 4095, order=">"), [0, 127, 255]),
    "plain PGM": (b"P2 3 1 1000\n0 500 1000\n", [0, 127, 255]),
}


@pytest.mark.parametrize("name", SHADES)
def test_shades(name):
    data, expected = SHADES[name]
    for image in (load_image(data), as_rgb(Image.open(io.BytesIO(data)))):
        assert image.mode == "RGB"
        found = np.asarray(image)[0].astype(int)
        assert np.abs(found - np.array(expected)[:, None]).max() <= 1, found[:, 0]


def test_a_transparent_colour_of_16_bits():
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)),
        (b"tRNS", shorts(0x1234, 0x5678, 0x9ABC, order=">")),
        (b"IDAT", zlib.compress(b"\0" + shorts(0x1234, 0x5678, 0x9ABC, 0, 0, 0, order=">"))),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    assert np.asarray(load_image(data))[0].tolist() == [[255, 255, 255], [0, 0, 0]]


@pytest.mark.parametrize(("mode", "words"), [("F", "32-bit"), ("I", "32-bit"), ("LAB", "CIELAB")])
def test_pixels_without_a_range_are_refused(mode, words):
    image = Image.new(mode, (3, 3))
    for refused in (lambda: as_rgb(image), lambda: load_image(encoded(image, "TIFF"))):
        with pytest.raises(UserError, match=words) as caught:
            refused()
        assert caught.value.kind == "undecodable_image"


MODES = ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "HSV", "I;16"]


def in_mode(mode: str, size=(40, 30)) -> Image.Image:
    draw = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(draw.integers(0, 65536, size[::-1], dtype=np.uint16))
    image = Image.fromarray(draw.integers(0, 256, (*size[::-1], 4), dtype=np.uint8))
    return image.convert("LA").convert(mode) if mode in ("La", "PA") else image.convert(mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("consume", [True, False])
def test_bands_give_the_same_pixels(monkeypatch, mode, consume):
    whole = as_rgb(in_mode(mode))
    monkeypatch.setattr(rgb, "BAND_PIXELS", 200)
    image = in_mode(mode)
    before = image.tobytes()
    banded = rgb.to_rgb(image, consume)
    assert (banded.mode, banded.size) == ("RGB", (40, 30)) and not banded.has_transparency_data
    assert np.array_equal(np.asarray(whole), np.asarray(banded))
    if not consume:
        assert (image.mode, image.tobytes()) == (mode, before)


ALIKE = {
    "transparent": encoded(Image.new("RGBA", (6, 4), (10, 20, 30, 100))),
    "palette": encoded(Image.new("P", (6, 4)), transparency=0),
    "16 bits": encoded(Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) * 2700)),
    "turned": encoded(in_mode("RGB", (6, 4)), "JPEG", exif=(exif := Image.Exif(), exif.__setitem__(0x0112, 6))[0]),
    "turned TIFF": encoded(in_mode("RGB", (6, 4)), "TIFF", exif=(exif := Image.Exif(), exif.__setitem__(0x0112, 8))[0]),
    "CMYK": encoded(in_mode("CMYK", (16, 16)), "JPEG"),
    "shades": SHADES["2-bit PNG"][0],
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_pil_image_is_the_image_of_its_file(tmp_path, name):
    from mmchat.inference.prompts import _open
    from mmchat.model.image_processor import open_images

    path = tmp_path / "image"
    path.write_bytes(ALIKE[name])
    expected = np.asarray(load_image(path))
    with Image.open(path) as image:
        entrances = [as_rgb(image), *open_images([image, path, image.copy()][: 2 if name == "shades" else 3])]
        entrances += [_open(image), _open(path), _open(lambda: image)] if name != "shades" else []
    for found in entrances:
        assert found.mode == "RGB" and np.array_equal(np.asarray(found), expected)


def test_an_rgb_image_is_returned_as_it_is():
    image = Image.new("RGB", (3, 3))
    assert as_rgb(image) is image


# What Pillow's decoders were seen to raise on damaged files of the formats in brackets.
RAISED = [RuntimeError("AVIF"), NotImplementedError("DDS"), IndexError("QOI"), TypeError("TIFF"), struct.error("x")]


@pytest.mark.parametrize("error", [*RAISED, KeyError("k"), AttributeError(), ZeroDivisionError()], ids=repr)
def test_any_exception_of_a_decoder_is_a_broken_image(monkeypatch, error):
    def load(self):
        raise error

    data = encoded(Image.new("RGB", (3, 3)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    for read in (lambda: load_image(data, name="a.png"), lambda: as_rgb(Image.open(io.BytesIO(data)))):
        with pytest.raises(UserError, match=r"is broken or cut off: ['\w]") as caught:
            read()
        assert caught.value.kind == "truncated_image"


def test_an_image_that_does_not_fit_into_memory(monkeypatch):
    def load(self):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(UserError, match=r"image a.png does not fit into memory") as caught:
        load_image(encoded(Image.new("RGB", (3, 3))), name="a.png")
    assert caught.value.kind == "out_of_memory"


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        encoded(Image.new("RGB", (4, 4)), "EPS"),
        encoded(Image.new("RGB", (4, 4)), "PDF"),
        encoded(Image.new("RGB", (4, 4)), "TGA"),
        encoded(Image.new("RGB", (16, 16)), "ICO"),
    ],
    ids=["PostScript", "EPS", "PDF", "TGA", "ICO"],
)
def test_a_format_outside_the_list_is_never_opened(monkeypatch, tmp_path, data):
    def ghostscript(*arguments, **options):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.check_call", ghostscript)
    monkeypatch.setattr("subprocess.Popen", ghostscript)
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    for read in (load_image, image_size):
        for source in (path, data):
            with pytest.raises(UserError, match="not in a format that Pillow can read"):
                read(source)


def test_formats_in_the_list_are_read():
    for name in readable_formats():
        if name not in ("HEIF",):
            assert load_image(encoded(Image.new("RGB", (16, 16), (255, 255, 255)), name)).size == (16, 16)
    assert set(readable_formats()) >= set(FORMATS) - {"HEIF"}
