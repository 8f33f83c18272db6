"""From records to one padded batch. Unusable samples are reported, never replaced."""

import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation import parse_messages
from mmchat.data.collate import Collator
from mmchat.data.config import DataConfig
from mmchat.data.dataset import MixtureDataset
from mmchat.data.mixture import open_mixture
from mmchat.data.order import BatchOrder
from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Rejected
from mmchat.data.samples import EncodedSample, Sample
from mmchat.errors import UserError
from mmchat.model.directory import load_assistant
from mmchat.training.config import RunConfig
from mmchat.training.dataloader import load_batches
from mmchat.training.objectives.assistant import AssistantObjective
from mmchat.vision import TowerSpec, normalise, preprocess
from tests.data import storing
from tests.training_fixtures import run_values, write_records

PAD, SLOT = 99, 7
SPECS = [TowerSpec(4, 2, 2, 8), TowerSpec(6, 3, 2, 8)]
BAD = Rejected("data.json:record 2", "b", "broken")


@pytest.fixture
def collate():
    return Collator(pad_id=PAD, specs=SPECS, slot_id=SLOT, tokens_per_view=2)


def sample(ids, images=0, name="a", labels=True, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [(1, 3, spec.image_size, spec.image_size) for spec in SPECS]
    pixels = [[rng.integers(0, 256, size, dtype=np.uint8) for size in sizes] for _ in range(images)]
    return Sample(0, name, EncodedSample(ids, [IGNORE_INDEX, *ids[1:]] if labels else None, pixels))


def test_padding_labels_and_images(collate):
    long, short = sample([1, SLOT, SLOT, SLOT, SLOT, 5], images=2), sample([1, SLOT, SLOT], images=1, seed=1, name="b")
    batch = collate([long, sample([1, 2], name="c"), short])
    assert batch.input_ids.tolist() == [[1, 7, 7, 7, 7, 5], [1, 2, PAD, PAD, PAD, PAD], [1, 7, 7, PAD, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    no = IGNORE_INDEX
    assert batch.labels.tolist() == [[no, 7, 7, 7, 7, 5], [no, 2, no, no, no, no], [no, 7, 7, no, no, no]]
    assert (batch.ids, batch.images, batch.tokens, batch.supervised) == (["a", "c", "b"], 3, 11, 8)
    for tower, spec in enumerate(SPECS):
        images = [*long.encoded.pixels, *short.encoded.pixels]
        expected = normalise(np.concatenate([image[tower] for image in images]), spec)
        assert torch.equal(batch.pixel_values[tower], torch.from_numpy(expected))


def test_the_first_position_of_a_row_predicts_nothing(collate):
    assert collate([Sample(0, "a", EncodedSample([1, 2, 3], [1, 2, 3], []))]).supervised == 2


def test_without_images_or_labels(collate):
    batch = collate([sample([1, 2, 3], labels=False)])
    assert batch.pixel_values is None
    assert (batch.images, batch.supervised) == (0, 0)
    assert batch.labels.tolist() == [[IGNORE_INDEX] * 3]


@pytest.mark.parametrize(("slots", "images"), [(3, 1), (2, 2), (2, 0), (0, 1)])
def test_a_slot_mismatch_names_the_sample(collate, slots, images):
    text = f"sample odd: {slots} image slots but {images} views x 2 features = {2 * images}"
    with pytest.raises(ValueError, match=text):
        collate([sample([1, 2]), sample([1] + [SLOT] * slots, images=images, name="odd")])
    # Sequences without slots (captions of a dual encoder) are not counted.
    Collator(pad_id=PAD, specs=SPECS)([sample([1, 2], images=1)])


def test_rejected_samples_are_reported(collate):
    batch = collate([sample([1, 2]), BAD, sample([1, 2, 3], name="c")])
    assert batch.rejected == [BAD]
    assert batch.ids == ["a", "c"]
    assert batch.input_ids.shape == (2, 3)


def test_a_batch_without_usable_samples_has_a_row(collate):
    batch = collate([BAD, BAD])
    assert batch.input_ids.tolist() == [[PAD]]
    assert (batch.supervised, batch.images, batch.ids) == (0, 0, [])
    assert batch.attention_mask.tolist() == [[1]]  # a row that attends to nothing would give NaN
    assert batch.rejected == [BAD, BAD]
    assert collate([]).input_ids.shape == (1, 1)


def mixture_of(path, tmp_path, **source):
    return open_mixture(DataConfig(path=str(path), **source), Quarantine(tmp_path / "quarantine.jsonl", "stop"))


@pytest.fixture
def dataset(tiny_records, tmp_path):
    def encode(record, images, template, max_length):
        if record.id == "text":
            raise UserError("too long")
        return EncodedSample([1, 2], None, [[preprocess(image, SPECS[0])] for image in images])

    return MixtureDataset(mixture_of(tiny_records, tmp_path), encode, SPECS[0].image_size)


def test_the_dataset_returns_samples_or_rejections(dataset, tiny_records):
    (tiny_records.parent / "1.png").write_bytes(b"no longer an image")
    answers = [dataset[index] for index in range(len(dataset))]
    assert [type(answer) for answer in answers] == [Rejected, Sample, Rejected, Sample]
    assert answers[0] == Rejected(f"{tiny_records}:record 1", "text", "too long")
    assert "1.png is not in a format" in answers[2].reason
    assert len(answers[3].encoded.pixels) == 2
    assert answers[3].index == 3


def test_draft_decoding_fits_the_largest_tower(tmp_path):
    """A quarter of 80 x 64 is 20 x 16, twice the larger tower's square and more; an eighth would be less."""
    Image.new("RGB", (80, 64), "teal").save(tmp_path / "a.jpg")
    (tmp_path / "a.json").write_text(json.dumps([{"image": "a.jpg", "caption": "x"}] * 2))
    seen = []

    def encode(record, images, template, max_length):
        seen.append(images[0].size)
        return EncodedSample([1], None, [])

    sources = {name: {"path": str(tmp_path / "a.json"), "draft": name == "drafted"} for name in ("drafted", "whole")}
    mixture = open_mixture(DataConfig(sources=sources), Quarantine(tmp_path / "quarantine.jsonl", "stop"))
    dataset = MixtureDataset(mixture, encode, Collator(pad_id=PAD, specs=SPECS).square)
    assert [dataset[number].index for number in range(4)] == [0, 1, 2, 3]
    assert seen == [(20, 16)] * 2 + [(80, 64)] * 2


def test_a_bug_is_not_a_rejected_sample(dataset):
    def broken(record, images, template, max_length):
        raise KeyError("a bug")

    dataset.encode = broken
    with pytest.raises(KeyError):
        dataset[1]


def test_every_storage_gives_identical_batches(assistant_dir, tmp_path, monkeypatch):
    """Loose files, tar shards and parquet: through the real processor, workers and collation, bit for bit."""
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))
    objective = AssistantObjective(RunConfig(**run_values(tmp_path, assistant_dir, tmp_path / "unused.json")))
    items = json.loads(write_records(tmp_path / "data", 14).read_text())
    stored = {
        "loose": tmp_path / "data" / "records.json",
        "tar": storing.write_tar(tmp_path / "a.tar", items, tmp_path / "data"),
        "parquet": storing.write_parquet(tmp_path / "a.parquet", items, tmp_path / "data"),
    }
    batches = {}
    for name, path in stored.items():
        mixture = mixture_of(path, tmp_path)
        steps = map(BatchOrder(mixture.plan, 3, 4).step, range(7))
        batches[name] = list(load_batches(mixture, objective, steps, workers=1))
    assert len(batches["loose"]) == 7 and sum(batch.images for batch in batches["loose"]) > 10
    for name in ("tar", "parquet"):
        for ours, other in zip(batches["loose"], batches[name], strict=True):
            assert ours.ids == other.ids and not (ours.rejected or other.rejected)
            for field in ("input_ids", "attention_mask", "labels"):
                assert torch.equal(getattr(ours, field), getattr(other, field))
            if ours.pixel_values is None:
                assert other.pixel_values is None
                continue
            assert all(torch.equal(a, b) for a, b in zip(ours.pixel_values, other.pixel_values, strict=True))


def test_from_records_to_a_loss(assistant_dir, tiny_records, tmp_path):
    """The whole way of a sample, on the CPU, through a real processor and a real model."""
    model, processor = load_assistant(assistant_dir)

    def encode(record, images, template, max_length):
        rendered = processor.render(record.turns, template=template)
        pixels = [processor.image_processor.pixels(image) for image in images]
        return EncodedSample(rendered.input_ids, rendered.labels, pixels)

    mixture = mixture_of(tiny_records, tmp_path)
    dataset = MixtureDataset(mixture, encode, 28)
    specs, slot = processor.image_processor.specs, model.config.image_token_id
    batch = Collator(processor.pad_token_id, specs, slot, processor.image_tokens)([dataset[i] for i in range(4)])
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "pixel_values": batch.pixel_values}
    with torch.no_grad():
        together = model(**inputs, labels=batch.labels).loss
        alone = 0
        for index in range(len(mixture)):
            sample = dataset[index]
            opened = [ref.open() for ref in mixture.find(index)[1].images]
            pixels = processor.image_processor(opened) if opened else {}
            ids, labels = torch.tensor([sample.encoded.input_ids]), torch.tensor([sample.encoded.labels])
            alone += model(ids, labels=labels, **pixels).loss * (labels[:, 1:] != IGNORE_INDEX).sum()
    torch.testing.assert_close(together, alone / batch.supervised, atol=1e-5, rtol=0)


def test_a_record_is_parsed_once(assistant_dir, tiny_records, tmp_path, monkeypatch):
    """From the file to the loss, messages become turns once, also where a record is shortened."""
    objective = AssistantObjective(RunConfig(**run_values(tmp_path, assistant_dir, tiny_records)))
    calls = []

    def counted(messages):
        calls.append(len(messages))
        return parse_messages(messages)

    for module in ("mmchat.conversation.messages", "mmchat.conversation.render", "mmchat.data.records"):
        monkeypatch.setattr(importlib.import_module(module), "parse_messages", counted)
    mixture = mixture_of(tiny_records, tmp_path, max_turns=1)
    assert len(calls) == len(mixture) == 4  # the scan for usable records
    calls.clear()
    dataset = MixtureDataset(mixture, objective.encode, objective.collator.square)
    batch = objective.collator([dataset[number] for number in range(4)])
    assert objective.loss_sum(objective.model, batch, images_on_any_rank=True) > 0
    assert len(batch.ids) == len(calls) == 4
