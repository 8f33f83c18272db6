"""`mmchat data check` on images: findings, similar images and the search for them."""

import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmchat.data.config import SourceConfig
from mmchat.data.doctor import image_checks as looking
from mmchat.data.doctor.duplicates import DISTANCE, SHARE, find_equal, find_near, first_equal
from mmchat.data.doctor.image_checks import check_image, difference_hash
from mmchat.data.doctor.run import check
from mmchat.data.image_refs import ImageBytes, ImageFile
from mmchat.files import read_json_lines
from mmchat.images import load_image
from tests.data.doctoring import ask, record, scene
from tests.data.planted_kinds import png_claiming
from tests.data.storing import write_jsonl


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def test_similar_images_are_found_and_different_ones_are_not(tmp_path):
    for seed in range(40):
        scene(seed, 96, 80).save(tmp_path / f"{seed}.png")
    for seed in range(0, 40, 4):
        scene(seed, 96, 80).save(tmp_path / f"like{seed}.jpg", quality=75)
    scene(1, 96, 80).resize((48, 40)).save(tmp_path / "like1.jpg")
    for blank in range(4):  # nothing in them is no likeness
        Image.new("RGB", (64, 64), (250, 250, 250 - blank)).save(tmp_path / f"blank{blank}.png")
    names = [*(f"{seed}.png" for seed in range(40)), *(p.name for p in tmp_path.glob("like*"))]
    names += [f"blank{blank}.png" for blank in range(4)]
    scene(77, 96, 80).save(tmp_path / "own.png")
    scene(77, 96, 80).save(tmp_path / "own.jpg")
    two = {**record("two", "own.png"), "image": ["own.png", "own.jpg"]}
    two["conversations"][0]["value"] += "<image>"
    path = write_jsonl(tmp_path / "r.jsonl", [*(record(name, name) for name in names), two])
    held_out = write_jsonl(tmp_path / "eval.jsonl", [record("e", "like8.jpg")])
    check(ask(path, tmp_path / "out"))
    found = {line["id"]: line["reason"] for line in read_json_lines(tmp_path / "out" / "warnings.jsonl")}
    assert found.keys() == {name for name in names if name.startswith("like")}
    assert found["like8.jpg"] == f"image 1 is nearly the same as in {path}:9"
    answer = check(ask(path, tmp_path / "out", against=(SourceConfig(path=str(held_out)),)))
    assert (answer.counts["error/leak"], answer.counts["warning/near_leak"]) == (1, 1)


def near_by_hand(hashes, known, before):
    def alike(a, b):
        pairs = [(int(x), int(y)) for x, y in zip(a, b, strict=True)]
        return all((x ^ y).bit_count() <= min(DISTANCE, (x | y).bit_count() / SHARE) for x, y in pairs)

    return [
        next((n for n, other in enumerate(known[:until]) if alike(one, other)), -1)
        for one, until in zip(hashes, before, strict=True)
    ]


bits = st.integers(0, 2**64 - 1)
flips = st.lists(st.integers(0, 63), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(bits, min_size=1, max_size=4), st.lists(st.tuples(st.integers(0, 3), flips, flips), max_size=25))
def test_near_images_are_those_that_comparing_all_pairs_finds(roots, changes):
    rows = [(root, root) for root in roots]
    for which, *turned in changes:
        row = rows[which % len(rows)]
        rows.append(tuple(value ^ sum({1 << bit for bit in some}) for value, some in zip(row, turned, strict=True)))
    hashes = np.array(rows, np.uint64)
    before = np.arange(len(hashes))
    assert find_near(hashes, hashes, before).tolist() == near_by_hand(hashes, hashes, before)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30), st.integers(0, 30))
def test_equal_rows_are_found_at_their_first_place(rows, cut):
    digests = np.array(rows, np.uint64).reshape(-1, 2)
    assert first_equal(digests).tolist() == [rows.index(row) for row in rows]
    known, asked = rows[:cut], rows[cut:]
    expected = [known.index(row) if row in known else -1 for row in asked]
    assert find_equal(digests[cut:], digests[:cut]).tolist() == expected


def test_a_shared_image_is_read_once(tmp_path, monkeypatch):
    scene(3).save(tmp_path / "shared.png")
    reads = []
    read = ImageFile.read
    monkeypatch.setattr(ImageFile, "read", lambda self: reads.append(self.path) or read(self))
    items = [record(str(number), "shared.png") for number in range(20)]
    check(ask(write_jsonl(tmp_path / "r.jsonl", items), tmp_path / "out"))
    assert reads == ["shared.png"]


def test_findings_about_an_image(monkeypatch):
    def problems(data):
        return [kind for kind, _ in check_image(ImageBytes(data)).problems]

    assert problems(encoded(scene(1, 100, 10))) == []
    assert problems(encoded(scene(1, 101, 10))) == ["extreme_aspect"]
    assert problems(encoded(scene(1, 9, 91))) == ["extreme_aspect", "tiny_image"]
    monkeypatch.setattr(looking, "HUGE_PIXELS", 64 * 64 - 1)
    assert problems(encoded(scene(1))) == ["huge_image"]
    assert problems(encoded(scene(1, 63, 64))) == []
    assert problems(encoded(Image.new("F", (20, 20)), "TIFF")) == ["undecodable_image"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # without Pillow's limit, ours still applies
    assert problems(png_claiming(14_000, 12_800)) == ["decompression_bomb"]
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        assert problems(encoded(scene(1, 60, 50), kind, exif=exif)) == ["exif_rotation"]
    assert check_image(ImageBytes(encoded(scene(1), "PNG")), 64 * 64 - 1).problems[0][0] == "decompression_bomb"
    turned = check_image(ImageBytes(encoded(scene(1, 60, 50), "PNG", exif=exif)))
    assert (turned.width, turned.height) == (50, 60)


def test_a_difference_hash_survives_another_encoding():
    alike = 0
    for seed in range(30):
        first = difference_hash(scene(seed, 90, 70))
        again = difference_hash(load_image(encoded(scene(seed, 90, 70).resize((60, 50)), "JPEG", quality=60)))
        assert first != (0, 0)
        alike += max((a ^ b).bit_count() for a, b in zip(first, again, strict=True)) <= DISTANCE
    assert alike >= 27
    assert difference_hash(Image.new("RGB", (50, 50), "white")) == (0, 0)
