"""Training on images in tiles: what only tiles have. `test_varying_views_training` has the rest."""

import base64
import json

import fsspec
import numpy as np
import pytest
from PIL import Image

from mmchat.contrastive.directory import init_clip
from mmchat.data import storage
from mmchat.data.config import DataConfig
from mmchat.data.lengths import LengthMeasure, index_path, length_index
from mmchat.data.mixture import open_mixture
from mmchat.data.quarantine import Quarantine
from mmchat.data.sources import open_source
from mmchat.errors import SharedError, UserError
from mmchat.model.directory import save_assistant
from mmchat.planning.plan import Hardware, make_plan
from mmchat.training.build_model import build_model
from tests.data import storing
from tests.training.varying_views import SIZES, TILES, run_over_sizes
from tests.training_fixtures import opened, write_records


@pytest.fixture(scope="module")
def model(make_assistant, make_tower, tmp_path_factory):
    out = tmp_path_factory.mktemp("tiled") / "model"
    save_assistant(*make_assistant(towers=[make_tower(layer=-2, preprocessing=TILES)]), out)
    return out


@pytest.fixture
def config(tmp_path, model, monkeypatch):
    """config(**changes): a run over a mixture of three storages, images of different sizes."""
    return run_over_sizes(tmp_path, model, monkeypatch)


def test_another_tiling_is_another_index(config, tmp_path):
    objective, _ = opened(config())
    source = open_source(tmp_path / "data" / "loose.json")
    keys = set()
    for most in (4, 6):
        objective.processor.image_processor.towers[0]["preprocessing"]["tiling"]["max_tiles"] = most
        keys.add(index_path(source, LengthMeasure(objective.processor)))
    assert len(keys) == 2


def test_an_image_that_tells_no_size_makes_its_sample_unusable(config, tmp_path):
    (tmp_path / "data" / "1-0.png").write_bytes(b"no image")
    objective, _ = opened(config())
    index = length_index(open_source(tmp_path / "data" / "loose.json"), LengthMeasure(objective.processor), workers=0)
    assert index.usable.tolist() == [0, 2, 3]
    plan = make_plan(config(on_bad_sample="skip"), Hardware())
    assert plan.sources[0].unusable == 1 and "1-0.png is not in a format" in plan.sources[0].first


def test_the_budget_of_images_counts_views(config):
    with pytest.raises(
        SharedError,
        match=r"and [5-8] view\(s\) of images, but objective.packing.tokens is 400 and objective.packing.images 4",
    ):
        opened(config(objective={"packing": {"tokens": 400, "images": 4}}))


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


def test_every_storage_tells_an_images_size_by_its_beginning(config, tmp_path):
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
    read = []
    whole = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda *a: read.append(len(whole(*a))) or whole(*a))
    assert image.size() == (300, 200)
    assert sum(read) <= 512  # the member's header in the tar
