"""Training on images of native aspect: what is measured is made, and a step's gradient is that of its samples."""

import json
import re

import numpy as np
import pytest
import torch

from mmchat.cli.main import main
from mmchat.data.config import SourceConfig
from mmchat.data.dataset import MixtureDataset
from mmchat.data.doctor.record_checks import RecordChecker
from mmchat.data.lengths import source_lengths, source_measure
from mmchat.data.preview.preview import open_unscanned, preview_record
from mmchat.errors import UserError
from mmchat.model.directory import save_assistant
from mmchat.planning.plan import Hardware, make_plan
from mmchat.settings import validate
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from mmchat.training.monitoring.flops import model_flops
from tests.invariants.test_gradients import assert_equal
from tests.training_fixtures import gradients, opened, run_values, write_mixture, write_records

SIZES = ((60, 28), (31, 24), (30, 95))
"""Of 10, 12 and 12 patches in grids of 2 x 5, 3 x 4 and 6 x 2."""


@pytest.fixture(scope="module")
def model(make_assistant, native_tower, tmp_path_factory):
    out = tmp_path_factory.mktemp("native") / "model"
    save_assistant(*make_assistant(towers=[native_tower]), out)
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
    number, look = 0, RecordChecker(SourceConfig(path="any"), objective.processor)
    for part in feed.mixture.sources:
        lengths = source_lengths(part, source_measure(part, objective.processor, 400))
        for tokens, _, images, views, patches in zip(*lengths.columns, strict=True):
            encoded = dataset[number].encoded
            assert (len(encoded.input_ids), encoded.images, encoded.views) == (tokens, images, views)
            assert patches == views == sum(rows * columns for rows, columns in encoded.grids)
            sizes = [image.open().size for image in feed.mixture.find(number)[1].images]
            expected = [objective.collator.specs[0].grid(size) for size in sizes]
            assert objective.collator([dataset[number]]).grids == (expected or None)
            assert look(feed.mixture.find(number)[1]).tokens == tokens
            number += 1
    assert number == 12 and len({dataset[n].encoded.views for n in range(12)}) > 3


WAYS = {
    "packed": {"objective": {"packing": {"tokens": 400, "images": 40}}},
    "of like length": {"objective": {"packing": {"tokens": 400, "padded": True}}},
    "one by one": {"micro_batch_size": 1},
}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_padded_step(config, way):
    objective, feed = opened(config())
    (_, [padded]), *_ = feed.steps(0)
    loss, expected = gradients(objective, [padded])
    assert padded.images == len(padded.grids) > 0 and len(set(padded.grids)) > 1
    other, feed = opened(config(**WAYS[way]))
    (_, batches), *_ = feed.steps(0)
    assert len(batches) > 1 and {id for batch in batches for id in batch.ids} == set(padded.ids)
    assert any(batch.grids is None for batch in batches) == (way == "one by one")  # a sample of text alone
    assert sum(batch.views for batch in batches) == padded.views
    found_loss, found = gradients(other, batches)
    assert found_loss == pytest.approx(loss, rel=1e-6) and found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_equal(found[name], gradient, expected, f"{way}: {name}")


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


def test_the_plan_is_what_the_run_does(config):
    run = config(objective={"packing": {"tokens": 400}}, precision="bf16")
    plan = make_plan(run, Hardware())
    objective, feed = opened(run)
    steps = [batches for _, batches in feed.steps(0)]
    assert [(row.step, row.tokens, row.images) for row in plan.rows] == [
        (number, sum(b.tokens for b in batches), sum(b.images for b in batches))
        for number, batches in enumerate(steps, 1)
    ]
    assert plan.steps[0].patches.most == max(sum(b.views for b in batches) for batches in steps)
    assert plan.worst.batch.views > plan.worst.batch.images > 1
    assert plan.memory and not plan.problems
    assert model_flops(objective.model) is plan.cost is None


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
    assert stop.value.code == 2 and "the tower's fit is 'native'; give it another" in capsys.readouterr().err
    main([*words, "--fit", "squash"])
    assert "pool pooled" in capsys.readouterr().out


def test_a_dummy_image_is_one_patch(config):
    """Where another rank has images; towers and projectors get a gradient of zero."""
    objective, feed = opened(config(micro_batch_size=1))
    batch = next(batch for _, batches in feed.steps(0) for batch in batches if not batch.images)
    objective.loss_sum(objective.model, batch, images_on_any_rank=True).backward()
    idle = {id(parameter) for parameter in objective.model.towers[0].idle_parameters()}
    seeing = [p for part in (objective.model.towers, objective.model.projectors) for p in part.parameters()]
    assert all(not p.grad.any() for p in seeing if id(p) not in idle)


def test_init_and_a_runs_own_fit(config, native_tower, language_json, data_dir, tmp_path, capsys):
    (tmp_path / "tower.json").write_text(json.dumps(native_tower.config.to_dict()))
    words = ["--language", language_json("llama"), "--vision", tmp_path / "tower.json"]
    words += ["--tokenizer", data_dir / "tokenizers" / "llama_like_legacy_false"]
    main(["init", *map(str, [*words, "--max-patches", 30, "--out", tmp_path / "a"])])
    assert re.search(r"1 slot per patch, vicuna_v1\n$", capsys.readouterr().out)
    assert build_model(config(model=str(tmp_path / "a"))).objective.collator.specs[0].preprocessing.max_patches == 30
    main(["init", *map(str, [*words, "--fit", "squash", "--image-size", 35, "--out", tmp_path / "b"])])
    assert "25 slots per image" in capsys.readouterr().out
    objective = build_model(config(model=str(tmp_path / "b"), objective={"fit": "native"})).objective
    assert objective.collator.specs[0].native and objective.collator.tokens_per_view == 1
    with pytest.raises(SystemExit) as stop:
        main(["init", *map(str, [*words, "--fit", "squash", "--max-patches", 9, "--out", tmp_path / "c"])])
    assert stop.value.code == 2 and "max_patches" in capsys.readouterr().err
