"""Training on images in tiles: what is measured is what is made, and a step's gradient is that of its samples."""

import base64
import json

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from mmchat.contrastive.directory import init_clip
from mmchat.data import storage
from mmchat.data.config import DataConfig, SourceConfig
from mmchat.data.dataset import MixtureDataset
from mmchat.data.doctor.record_checks import RecordChecker
from mmchat.data.lengths import LengthMeasure, index_path, length_index, source_lengths, source_measure
from mmchat.data.mixture import open_mixture
from mmchat.data.quarantine import Quarantine
from mmchat.data.sources import open_source
from mmchat.errors import SharedError, UserError
from mmchat.model.directory import save_assistant
from mmchat.planning.plan import Hardware, make_plan
from mmchat.settings import validate
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from mmchat.training.monitoring.flops import model_flops
from mmchat.vision import Tiling
from mmchat.vision.spec import Preprocessing
from tests.data import storing
from tests.invariants.test_gradients import assert_equal
from tests.training_fixtures import gradients, opened, run_values, write_mixture, write_records

TILES = Preprocessing(fit="tiles", tiling=Tiling(max_tiles=4))
SIZES = ((60, 28), (31, 24), (30, 95))
"""Of 3, 1 and 4 views in tiles of 28."""


@pytest.fixture(scope="module")
def model(make_assistant, make_tower, tmp_path_factory):
    out = tmp_path_factory.mktemp("tiled") / "model"
    save_assistant(*make_assistant(towers=[make_tower(layer=-2, preprocessing=TILES)]), out)
    return out


@pytest.fixture
def config(tmp_path, model, monkeypatch):
    """config(**changes): a run over a mixture of three storages, images of different sizes."""
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))
    values = run_values(tmp_path, model, write_mixture(tmp_path / "data", 12, SIZES), steps=2, batch_size=6)
    return lambda **changes: validate(RunConfig, values | changes, "test")


def test_what_the_index_holds_is_what_training_makes(config):
    objective, feed = opened(config())
    dataset = MixtureDataset(feed.mixture, objective.encode, objective.collator.square)
    number, examine = 0, RecordChecker(SourceConfig(path="any"), objective.processor)
    for part in feed.mixture.sources:
        lengths = source_lengths(part, source_measure(part, objective.processor, 400))
        for tokens, _, images, views, patches in zip(*lengths.columns, strict=True):
            encoded = dataset[number].encoded
            found = len(encoded.input_ids), encoded.images, encoded.views, 16 * encoded.views
            assert found == (tokens, images, views, patches)
            assert examine(feed.mixture.find(number)[1]).tokens == tokens
            number += 1
    objective.processor.render([{"from": "human", "value": "text"}, {"from": "gpt", "value": "alone"}])
    with pytest.raises(UserError, match=r"hold 2 image\(s\), image_tokens is given for 0"):
        objective.processor.render(feed.mixture.find(1)[1].turns)
    assert number == 12 and len({dataset[n].encoded.views for n in range(12)}) > 3


def test_another_tiling_is_another_index(config, tmp_path):
    objective, _ = opened(config())
    source = open_source(tmp_path / "data" / "loose.json")
    keys = set()
    for most in (4, 6):
        objective.processor.image_processor.towers[0]["preprocessing"]["tiling"]["max_tiles"] = most
        keys.add(index_path(source, LengthMeasure(objective.processor)))
    assert len(keys) == 2


def test_a_image_that_tells_no_size_makes_its_sample_unusable(config, tmp_path):
    (tmp_path / "data" / "1-0.png").write_bytes(b"no image")
    objective, _ = opened(config())
    index = length_index(open_source(tmp_path / "data" / "loose.json"), LengthMeasure(objective.processor), workers=0)
    assert index.usable.tolist() == [0, 2, 3]
    plan = make_plan(config(on_bad_sample="skip"), Hardware())
    assert plan.sources[0].unusable == 1 and "1-0.png is not in a format" in plan.sources[0].first


WAYS = {
    "packed": {"objective": {"packing": {"tokens": 400, "images": 8}}},
    "of like length": {"objective": {"packing": {"tokens": 400, "padded": True}}},
    "one by one": {"micro_batch_size": 1},
}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_padded_step(config, way):
    objective, feed = opened(config())
    (_, [padded]), *_ = feed.steps(0)
    loss, expected = gradients(objective, [padded])
    assert padded.views > padded.images > 0
    other, feed = opened(config(**WAYS[way]))
    (_, batches), *_ = feed.steps(0)
    assert len(batches) > 1 and {id for batch in batches for id in batch.ids} == set(padded.ids)
    assert sum(batch.views for batch in batches) == padded.views and sum(b.images for b in batches) == padded.images
    assert way != "packed" or max(batch.views for batch in batches) <= 8
    found_loss, found = gradients(other, batches)
    assert found_loss == pytest.approx(loss, rel=1e-6) and found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_equal(found[name], gradient, expected, f"{way}: {name}")


def test_the_budget_of_images_counts_views(config):
    with pytest.raises(
        SharedError, match=r"and [5-8] view\(s\) of images, but packing.tokens is 400 and packing.images 4"
    ):
        opened(config(objective={"packing": {"tokens": 400, "images": 4}}))


def test_a_few_steps_are_learned(config):
    objective, feed = opened(config(overfit_one_batch=True))
    (_, batches), *_ = feed.steps(0)
    trained = [parameter for parameter in objective.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for _ in range(4):
        losses.append(gradients(objective, batches)[0])
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("packing", [None, {"tokens": 400}], ids=["padded", "packed"])
def test_the_plan_is_what_the_run_does(config, packing):
    run = config(objective={"packing": packing})
    plan = make_plan(run, Hardware())
    objective, feed = opened(run)
    steps = [batches for _, batches in feed.steps(0)]
    assert [(row.step, row.tokens, row.images) for row in plan.rows] == [
        (number, sum(b.tokens for b in batches), sum(b.images for b in batches))
        for number, batches in enumerate(steps, 1)
    ]
    counted = [sum(map(model_flops(objective.model).of, batches)) for batches in steps]
    assert plan.cost.operations == sum(counted) / len(counted)
    (worst,) = [batch for batch in steps[plan.worst.batch.step - 1] if batch.ids == plan.worst.ids]
    assert plan.worst.batch.views == worst.views > worst.images
    assert plan.steps[0].patches.most == 16 * max(sum(b.views for b in batches) for batches in steps)
    assert not plan.problems


def test_drafts_would_be_cut_otherwise(config, tmp_path):
    data = str(write_records(tmp_path / "more", 3))
    validation = {"path": data, "draft": True}
    sources = {"a": {"path": data, "draft": True}, "b": {"path": data}}
    with pytest.raises(UserError, match=r"leave out data\.sources\.a\.draft, validation\.draft$"):
        build_model(config(data={"sources": sources}, validation=validation))
    build_model(config(data={"sources": sources}, objective={"fit": "pad"}))


def test_a_dual_encoder_has_one_view(make_tower, tmp_path, data_dir):
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = str(data_dir / "tokenizers" / "llama_like_legacy_false")
    with pytest.raises(UserError, match="a dual encoder takes one square of each image"):
        init_clip(make_tower(preprocessing=TILES), text, words, 16, "max", tmp_path / "clip")


def test_every_storage_tells_a_images_size_by_its_beginning(config, tmp_path):
    """A file, a member of a tar shard, bytes of a table, and what comes through fsspec or in the record itself."""
    path = write_records(tmp_path / "data", 12, sizes=SIZES)
    for name in path.parent.glob("*.png"):
        with fsspec.open(f"memory://sizes/{name.name}", "wb") as file:
            file.write(name.read_bytes())
    items = json.loads(path.read_text())
    for item in items:
        images = [base64.b64encode((path.parent / name).read_bytes()).decode() for name in item["image"]]
        item["image"] = [f"data:image/png;base64,{image}" for image in images]
    (tmp_path / "inside.json").write_text(json.dumps(items))
    shares = [DataConfig(sources=config().data.sources), DataConfig(path=str(path), image_root="memory://sizes")]
    for data in (*shares, DataConfig(path=str(tmp_path / "inside.json"))):
        mixture = open_mixture(data, Quarantine(tmp_path / "q.jsonl", "stop", writes=False))
        images = [image for n in range(len(mixture)) for image in mixture.find(n)[1].images]
        assert [image.size() for image in images] == [image.open().size for image in images]
        assert {image.size() for image in images} == set(SIZES)


def test_a_shards_image_is_not_read_to_its_end(config, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    record = {
        "id": "a",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>a"}, {"from": "gpt", "value": "b"}],
    }
    (tmp_path / "shards").mkdir()
    storing.write_tar(tmp_path / "shards" / "0.tar", [record], tmp_path)
    (image,) = open_source(tmp_path / "shards")[0].images
    monkeypatch.setattr(storage, "read_bytes", None)
    assert image.size() == (300, 200)
