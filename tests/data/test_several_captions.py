"""An image with several captions: training draws one by (seed, epoch, sample), an evaluation uses all of them."""

import json

import numpy as np
import pytest

from mmchat.data.config import DataConfig
from mmchat.data.dataset import MixtureDataset
from mmchat.data.epoch_plan import EpochPlan
from mmchat.data.lengths import LengthMeasure
from mmchat.data.mixture import open_mixture
from mmchat.data.order import BatchOrder
from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Rejected, parse_record, read_record, stored_form
from mmchat.data.samples import EncodedSample

CAPTIONS = ["a cat", "a small cat", "an animal on a mat"]


@pytest.fixture
def root(tmp_path, make_image):
    make_image().save(tmp_path / "0.png")
    rows = [{"id": f"{n}", "image": "0.png", "caption": [f"{c} {n}" for c in CAPTIONS[: n % 3 + 1]]} for n in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize("key", ["caption", "captions", "text", "txt"])
def test_all_are_kept(root, key):
    record = parse_record({"image": "0.png", key: CAPTIONS, "id": "7", "page": "u"}, "there:1", root)
    assert record.captions == tuple(CAPTIONS) and record.answers == CAPTIONS[:1]
    assert [one.answers for one in record.variants] == [[caption] for caption in CAPTIONS]
    again = parse_record({**stored_form(record), "image": "0.png"}, "there:1", root)
    assert (again.captions, again.id, again.extra) == (record.captions, "7", {"page": "u"})
    one = parse_record({"image": "0.png", key: CAPTIONS[:1]}, "there:1", root)
    assert one.captions == () and one.answers == CAPTIONS[:1]


def test_what_is_no_list_of_captions(root):
    for value, reason in (([], "is missing"), (["a", ""], "holds an empty text among 2"), (["a", 5], "is missing")):
        found = read_record({"image": "0.png", "caption": value}, "there:1", root)
        assert isinstance(found, Rejected) and reason in found.reason


def mixture(root, every_caption=False):
    quarantine = Quarantine(root / "quarantine.jsonl", "stop")
    return open_mixture(DataConfig(path=str(root / "data.jsonl")), quarantine, every_caption=every_caption)


def drawn(root, seed, steps):
    """Caption by (step, sample), with batches that straddle the ends of epochs."""
    seen = []

    def encode(record, images, template, max_length):
        seen.append(record.answers[0])
        return EncodedSample([1], None, [], 0)

    order = BatchOrder(EpochPlan((8,), (8,)), seed, batch_size=3)
    dataset = MixtureDataset(mixture(root), encode, square=8, order=order)
    keys = [(step, number) for step in range(steps) for number in order.step(step)]
    for step, number in keys:
        dataset[number, step]
    return [(number, caption) for (_, number), caption in zip(keys, seen, strict=True)]


def test_training_draws_one(root):
    pairs = drawn(root, 5, 80)
    assert pairs == drawn(root, 5, 80) != drawn(root, 6, 80)
    for number in range(8):
        captions = [caption for at, caption in pairs if at == number]
        assert len(captions) == 30 and set(captions) == {f"{c} {number}" for c in CAPTIONS[: number % 3 + 1]}


def test_the_epoch_of_a_sample():
    order = BatchOrder(EpochPlan((4,), (4,)), 1, batch_size=3)
    places = [(step, number) for step in range(4) for number in order.step(step)]
    found = [order.epoch_of(step, number) for step, number in places]
    expected = [at // 4 for at in range(12)]
    twice = [places.count(place) > 1 for place in places]
    assert [f for f, t in zip(found, twice, strict=True) if not t] == [
        e for e, t in zip(expected, twice, strict=True) if not t
    ]


def test_an_evaluation_uses_all(root):
    held_out = mixture(root, every_caption=True)
    found = [held_out.find(number)[1].answers[0] for number in range(len(held_out))]
    assert found == [f"{caption} {n}" for n in range(8) for caption in CAPTIONS[: n % 3 + 1]]
    assert len(mixture(root)) == 8


def test_the_longest_is_measured(root, assistant_dir):
    from mmchat.model.directory import load_processor

    measure = LengthMeasure(load_processor(assistant_dir), 200)
    record = parse_record({"image": "0.png", "caption": CAPTIONS}, "there:1", root)
    columns = np.array(
        [measure(one) for one in (parse_record({"image": "0.png", "caption": c}, "x", root) for c in CAPTIONS)]
    )
    assert measure(record) == tuple(columns.max(axis=0)) and len(set(columns[:, 0])) > 1
