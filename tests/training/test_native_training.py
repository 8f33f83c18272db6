"""Training on images at their native aspect: what only that has. `test_varying_views_training` has the rest."""

import json
import re

import numpy as np
import pytest

from mmchat.cli.main import main
from mmchat.data.config import SourceConfig
from mmchat.data.preview.preview import open_unscanned, preview_record
from mmchat.errors import UserError
from mmchat.model.directory import save_assistant
from mmchat.training.build_model import build_model
from tests.training.varying_views import SIZES, run_over_sizes
from tests.training_fixtures import opened, write_records


@pytest.fixture(scope="module")
def model(make_assistant, native_tower, tmp_path_factory):
    out = tmp_path_factory.mktemp("native") / "model"
    save_assistant(*make_assistant(towers=[native_tower]), out)
    return out


@pytest.fixture
def config(tmp_path, model, monkeypatch):
    """config(**changes): a run over a mixture of three storages, images of different sizes."""
    return run_over_sizes(tmp_path, model, monkeypatch)


def test_what_is_shown_is_what_is_seen(config, make_image, tmp_path):
    objective, _ = opened(config())
    path = write_records(tmp_path / "shown", 2, images=2, sizes=SIZES)
    sample = preview_record(open_unscanned("shown", SourceConfig(path=str(path))), 0, objective.processor)
    assert sample.slots == 22 and [len(p.ids) for p in sample.pieces if p.kind == "image"] == [10, 12]
    ((told, shown),) = sample.images[0].towers
    assert told == "60x28 RGB -> 35x14 native, 5 x 2 patches"
    resized = np.asarray(sample.images[0].original.resize((35, 14), 2))
    assert shown.shape == (1, 3, 14, 35) and np.array_equal(shown[0].transpose(1, 2, 0), resized)


def test_what_cannot_be_combined(config, tmp_path):
    data = str(write_records(tmp_path / "more", 3))
    with pytest.raises(
        UserError, match=r"depend on its size, which decoding as a draft changes: leave out data\.draft$"
    ):
        build_model(config(data={"path": data, "draft": True}))
    frozen = {"towers": "frozen", "projectors": "full", "language_model": "full"}
    cached = {"objective": {"feature_cache": str(tmp_path / "features")}, "trainable": frozen}
    with pytest.raises(UserError, match="feature_cache stores one record per view, and with fit native"):
        build_model(config(**cached))
    cached["objective"]["fit"] = "squash"
    build_model(config(**cached))


def test_a_dual_encoder_sees_squares(native_tower, data_dir, tmp_path, capsys):
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "text.json").write_text(json.dumps(text))
    (tmp_path / "tower.json").write_text(json.dumps(native_tower.config.to_dict()))
    words = ["--vision", tmp_path / "tower.json", "--text", tmp_path / "text.json", "--out", tmp_path / "clip"]
    words = ["clip", "init", *map(str, [*words, "--tokenizer", data_dir / "tokenizers" / "llama_like_legacy_false"])]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and "the tower's fit is 'native'; choose another fit" in capsys.readouterr().err
    main([*words, "--fit", "squash"])
    assert "pool pooled" in capsys.readouterr().out


def test_a_dummy_image_is_one_patch(config):
    """Where another rank has images; towers and projectors get a gradient of zero."""
    objective, dataloader = opened(config(micro_batch_size=1))
    batch = next(batch for _, batches in dataloader.steps(0) for batch in batches if not batch.images)
    objective.loss_sum(objective.model, batch, images_on_any_rank=True).backward()
    idle = {id(parameter) for parameter in objective.model.towers[0].idle_parameters()}
    seeing = [p for part in (objective.model.towers, objective.model.projectors) for p in part.parameters()]
    assert all(not p.grad.any() for p in seeing if id(p) not in idle)


def test_init_and_a_runs_own_fit(config, native_tower, language_json, data_dir, tmp_path, capsys):
    (tmp_path / "tower.json").write_text(json.dumps(native_tower.config.to_dict()))
    words = ["--language", language_json("llama"), "--vision", tmp_path / "tower.json"]
    words += ["--tokenizer", data_dir / "tokenizers" / "llama_like_legacy_false"]
    main(["init", *map(str, [*words, "--max-patches", 30, "--out", tmp_path / "a"])])
    assert re.search(r"parameters, 1 slot per patch\b", capsys.readouterr().out)
    assert build_model(config(model=str(tmp_path / "a"))).objective.collator.specs[0].preprocessing.max_patches == 30
    main(["init", *map(str, [*words, "--fit", "squash", "--image-size", 35, "--out", tmp_path / "b"])])
    assert "25 slots per image" in capsys.readouterr().out
    objective = build_model(config(model=str(tmp_path / "b"), objective={"fit": "native"})).objective
    assert objective.collator.specs[0].native and objective.collator.tokens_per_view == 1
    with pytest.raises(SystemExit) as stop:
        main(["init", *map(str, [*words, "--fit", "squash", "--max-patches", 9, "--out", tmp_path / "c"])])
    assert stop.value.code == 2 and "max_patches" in capsys.readouterr().err
