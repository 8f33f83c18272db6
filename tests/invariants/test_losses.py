"""Ranks that share out everything, one of them without images, train as one that has it all."""

import json

import pytest
from safetensors.torch import load_file

from mmchat.data.epoch_plan import EpochPlan
from mmchat.data.order import BatchOrder, split_micro_batches
from tests.launching import launch, steps, write_config
from tests.training_fixtures import run_values, write_records

STEPS, BATCH, RECORDS = 6, 4, 24
TEXT_ONLY_STEPS = (1, 2, 3, 4)
"""In which every sample of the second rank has no image (counted from 0)."""


@pytest.fixture(scope="module")
def setup(tmp_path_factory, assistant_dir):
    folder = tmp_path_factory.mktemp("losses")
    path = write_records(folder / "data", RECORDS, images=1)
    order = BatchOrder(EpochPlan((RECORDS,), (RECORDS,)), 0, BATCH)
    records = json.loads(path.read_text())
    for step in TEXT_ONLY_STEPS:
        for number in split_micro_batches(order.step(step), BATCH // 2, rank=1, ranks=2)[0]:
            del records[number]["image"]
            turn = records[number]["conversations"][0]
            turn["value"] = turn["value"].removeprefix("<image>\n")
    path.write_text(json.dumps(records))
    values = run_values(folder, assistant_dir, path, steps=STEPS, batch_size=BATCH)
    config = write_config(folder / "run.yaml", **values)
    return folder, config


def trained(setup, name, *words, ranks=1):
    folder, config = setup
    result = launch(config, "--run_dir", str(folder / name), *words, ranks=ranks)
    assert result.returncode == 0, result.stdout
    return folder / name


@pytest.fixture(scope="module")
def alone(setup):
    return trained(setup, "alone")


def test_zero_3_with_a_text_only_rank_is_zero_0_on_one(setup, alone):
    shared = trained(
        setup,
        "shared",
        "--distributed.zero_stage",
        "3",
        "--distributed.activation_checkpointing",
        '["language_model"]',
        ranks=2,
    )
    assert_same(shared, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["1"], ["2"], ["2", "--distributed.offload", "optimizer"], ["3", "--distributed.offload", "all"]]
)
def test_so_are_the_others(setup, alone, words):
    assert_same(trained(setup, " ".join(words), "--distributed.zero_stage", *words, ranks=2), alone)


def assert_same(run, expected):
    for row, reference in zip(steps(run), steps(expected), strict=True):
        for field in ("ids", "terms", "tokens", "images", "operations"):
            assert row[field] == reference[field] and row[field], field
        assert row["loss"] == pytest.approx(reference["loss"], abs=1e-4)
    assert {row["images"] for row in steps(run)[1:5]} == {2} and steps(run)[0]["images"] == 4
    weights, reference = (load_file(path / "model" / "model.safetensors") for path in (run, expected))
    assert weights.keys() == reference.keys()
    for name, tensor in reference.items():
        # Adam divides by the gradient's own size, so rounding in a near-zero gradient shows in full.
        assert (weights[name] - tensor).abs().max() < 5e-4, name
