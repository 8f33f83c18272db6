"""The real digits: nothing that is scored on is learned from, variants are seeded and of their own scan."""

import json

import numpy as np
import pytest
from PIL import Image
from real_digits import WORDS, main
from sklearn.datasets import load_digits

from mmchat.errors import UserError


@pytest.fixture(scope="module", params=[[], ["--fold", "5"]], ids=["reporting", "fold"])
def written(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / "data"
    main(["--out", str(out), "--variants", "1", "--size", "16", *request.param])
    return out, bool(request.param)


def test_the_last_297_are_for_reporting_alone(written):
    out, fold = written
    numbers = {split: sorted(int(p.stem) for p in (out / split).rglob("*.png")) for split in ("train", "test")}
    expected = ((0, 1200), (1200, 1500)) if fold else ((0, 1500), (1500, 1797))
    assert numbers == {"train": list(range(*expected[0])), "test": list(range(*expected[1]))}
    learned = {int(record["id"].split("-")[0]) for record in json.loads((out / "captions.json").read_text())}
    assert learned == set(numbers["train"])
    asked = {int(record["id"]) for record in json.loads((out / "test.json").read_text())}
    assert asked == set(numbers["test"])


def test_images_and_captions_are_of_their_digit(written):
    out, _ = written
    digits = load_digits().target
    for path in (out / "test").rglob("*.png"):
        assert path.parent.name == WORDS[digits[int(path.stem)]]
    scans = {int(p.stem): np.asarray(Image.open(p), float) for p in (out / "train").rglob("*.png")}
    records = json.loads((out / "captions.json").read_text())
    for record in records:
        word = WORDS[digits[int(record["id"].split("-")[0])]]
        caption = record["conversations"][1]["value"]
        assert record["label"] == word and (word in caption or str(WORDS.index(word)) in caption)
    # A variant differs from its scan, and is nearer to it than to others, most of the time.
    order = list(scans)
    flat = np.stack([scans[number].ravel() for number in order])
    near = 0
    for record in records[:100]:
        variant = np.asarray(Image.open(out / record["image"]), float)
        number = int(record["id"].split("-")[0])
        assert not np.array_equal(variant, scans[number])
        near += digits[order[int(((flat - variant.ravel()) ** 2).sum(1).argmin())]] == digits[number]
    assert near > 80


def test_the_same_seed_draws_the_same(written, tmp_path):
    out, fold = written
    main(
        [
            "--out",
            str(tmp_path / "again"),
            "--variants",
            "1",
            "--size",
            "16",
            *(["--fold", "5"] if fold else []),
        ]
    )
    for name in ("captions.json", "captions/0003-00.png"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    with pytest.raises(UserError, match="is not empty"):
        main(["--out", str(out)])
