"""Images are untrusted: every kind is either read as RGB or refused with an error that names it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmchat.errors import UserError
from mmchat.images import find_images, image_size, load_image, resolve_inside


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixel(image, **options):
    return load_image(encoded(image, **options)).getpixel((0, 0))


# Where the stored rows and columns go, by the EXIF standard's table of orientations.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(make_image, orientation):
    stored = make_image(width=5, height=3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = load_image(encoded(stored, exif=exif))
    assert np.array_equal(np.asarray(upright), UPRIGHT[orientation](np.asarray(stored)))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_the_size_is_read_from_the_header(make_image, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(make_image(width=50, height=30), format, exif=exif)
    size = load_image(data).size
    assert image_size(data) == size == ((30, 50) if orientation > 4 else (50, 30))
    if format in ("PNG", "JPEG"):  # no file needs to be read further
        assert image_size(data[:-200]) == size


def test_png_orientation_after_the_pixels(make_image):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = encoded(make_image(), exif=exif), encoded(make_image())
    start = turned.index(b"eXIf") - 4
    (length,) = struct.unpack(">I", turned[start : start + 4])
    late = plain[:-12] + turned[start : start + 12 + length] + plain[-12:]
    assert load_image(late).size == image_size(late) == (22, 30)
    words = b"tEXtComment\0hello"
    chunk = struct.pack(">I", len(words) - 4) + words + struct.pack(">I", zlib.crc32(words))
    assert image_size(plain[:-12] + chunk + plain[-12:]) == (30, 22)


def test_a_size_is_refused_as_the_image_is(make_image, tmp_path):
    deep = Image.new("F", (3, 3))
    for data, words in ((b"no image", "not in a format"), (encoded(deep, "TIFF"), "32-bit pixels")):
        for read in (load_image, image_size):
            with pytest.raises(UserError, match=f"image a.png .*{words}"):
                read(data, name="a.png")
    with pytest.raises(UserError, match="claims 30x22 pixels, more than the limit of 600"):
        image_size(encoded(make_image()), max_pixels=600)
    with pytest.raises(UserError, match="does not exist"):
        image_size(tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("draft", "size"), [(None, (80, 60)), (31, (80, 60)), (30, (40, 30)), (8, (20, 15)), (7, (10, 8))]
)
def test_a_draft_keeps_the_minimum_side(make_image, draft, size):
    large = make_image(width=80, height=60)
    assert load_image(encoded(large, "JPEG"), draft=draft).size == size
    assert load_image(encoded(large, "PNG"), draft=draft).size == (80, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(encoded(large, "JPEG", exif=exif), draft=draft).size == size[::-1]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_is_refused_by_name(tmp_path, make_image, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    make_image(width=64, height=64).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=rf"image .*cut\.{suffix} is (broken or cut off|not in a format)"):
        load_image(path)


def png_claiming(width, height):
    """A PNG of a few bytes: to decode it would fail in another way than by its size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [14_000, 100_000])
def test_decompression_bomb_is_refused_undecoded(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(side, side))
    with pytest.raises(UserError, match=r"bomb\.png .*(limit|decompression bomb)"):
        load_image(path)


def test_a_smaller_pixel_limit(make_image):
    data = encoded(make_image(width=10, height=10))
    assert load_image(data, max_pixels=100).size == (10, 10)
    with pytest.raises(UserError, match=r"image bytes claims 10x10 pixels, more than the limit of 99"):
        load_image(data, max_pixels=99)


def test_transparency_is_composited_over_white():
    assert pixel(Image.new("RGBA", (2, 2), (255, 0, 0, 0))) == (255, 255, 255)
    assert pixel(Image.new("RGBA", (2, 2), (255, 0, 0, 255))) == (255, 0, 0)
    assert pixel(Image.new("RGBA", (2, 2), (0, 0, 0, 51))) == (204, 204, 204)
    assert pixel(Image.new("LA", (2, 2), (0, 0))) == (255, 255, 255)


def test_transparent_palette_entry_and_colour():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    image = load_image(encoded(palette, transparency=0))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (40, 50, 60)]
    assert pixel(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3)) == (255, 255, 255)
    assert pixel(Image.new("L", (2, 2), 7), transparency=7) == (255, 255, 255)


def test_other_modes_become_rgb():
    assert pixel(Image.new("L", (2, 2), 77)) == (77, 77, 77)
    assert pixel(Image.new("1", (2, 2), 1)) == (255, 255, 255)
    cmyk = load_image(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100))
    assert cmyk.mode == "RGB"
    assert np.abs(np.asarray(cmyk).astype(int) - (0, 255, 255)).max() <= 2


def test_sixteen_bit_grey_keeps_its_shades():
    shades = np.array([[0, 0x4000, 0x8000, 0xFFFF]], dtype=np.uint16)
    grey = np.asarray(load_image(encoded(Image.fromarray(shades))))
    assert np.abs(grey[0, :, 0].astype(int) - (0, 64, 128, 255)).max() <= 1


def test_paths_that_are_no_image(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png does not exist"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="is a folder, expected an image file"):
        load_image(tmp_path)
    (tmp_path / "words.png").write_text("not an image")
    with pytest.raises(UserError, match=r"words\.png is not in a format that Pillow can read"):
        load_image(tmp_path / "words.png")
    with pytest.raises(UserError, match="image bytes is not in a format"):
        load_image(b"")


def test_paths_stay_inside_the_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "secret.png"
    root.mkdir()
    outside.write_bytes(b"")
    (root / "link.png").symlink_to(outside)
    (root / "inner.png").write_bytes(b"")
    (root / "alias.png").symlink_to(root / "inner.png")
    assert resolve_inside(root, "a/../inner.png") == root / "inner.png"
    assert resolve_inside(root, "alias.png") == root / "inner.png"
    assert resolve_inside(root, str(root / "inner.png")) == root / "inner.png"
    for path in ("../secret.png", "a/../../secret.png", str(outside), "link.png", "../root-twin/x.png"):
        with pytest.raises(UserError, match="leaves the image root"):
            resolve_inside(root, path)
    with pytest.raises(UserError, match="image path"):
        resolve_inside(root, "nul\0byte.png")


def test_find_images(tmp_path, make_image):
    names = ["b.png", "a.JPG", "deep/er/c.webp", "deep/0.bmp"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    everything = [tmp_path / name for name in ("a.JPG", "b.png", "deep/0.bmp", "deep/er/c.webp")]
    assert find_images([tmp_path]) == everything
    # A named file comes where it is named, whatever its suffix, and once.
    named = [tmp_path / "deep/0.bmp", tmp_path / "notes.txt"]
    assert find_images([*named, tmp_path, tmp_path]) == [*named, *(p for p in everything if p not in named)]
    many = tmp_path / "many"
    many.mkdir()
    for number in (7, 3, 19, 0, 12, 5, 16, 1, 9, 14):
        (many / f"{number:02}.png").write_bytes(b"")
    assert find_images([many]) == [many / f"{number:02}.png" for number in (0, 1, 3, 5, 7, 9, 12, 14, 16, 19)]
    with pytest.raises(UserError, match=r"missing does not exist; expected an image file or a folder"):
        find_images([tmp_path / "missing"])
    with pytest.raises(UserError, match=r"no image found in .*folder\.png"):
        find_images([tmp_path / "folder.png"])
