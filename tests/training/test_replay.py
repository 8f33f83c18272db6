"""`mmchat replay` sees the batch that the run saw, and says what it cannot know."""

import json

import pytest

from mmchat.cli.main import main
from mmchat.errors import UserError
from mmchat.training.replay import replay
from tests.launching import launch, steps, write_config
from tests.training_fixtures import run_values, write_mixture


@pytest.fixture(scope="module")
def finished(tmp_path_factory, assistant_dir):
    folder = tmp_path_factory.mktemp("replay")
    mixture = write_mixture(folder / "data", 21)
    values = run_values(folder, assistant_dir, mixture, steps=4, micro_batch_size=2, distributed={"zero_stage": 3})
    values |= {"checkpoint": {"every": 2, "keep": 2}, "objective": {"augment_towers": [0]}}
    result = launch(write_config(folder / "run.yaml", **values), ranks=2)
    assert result.returncode == 0, result.stdout
    return folder / "run"


def test_a_step_has_its_ids_its_counts_and_its_loss(finished, assistant_dir):
    for step, origin in ((1, str(assistant_dir)), (3, str(finished / "checkpoints" / "step-00000002"))):
        found, row = replay(finished, step), steps(finished)[step - 1]
        assert [sample.id for sample in found.samples] == row["ids"]
        assert sum(sample.supervised for sample in found.samples) == row["terms"]
        assert sum(sample.tokens for sample in found.samples) == row["tokens"]
        assert sum(sample.images for sample in found.samples) == row["images"]
        assert found.loss == pytest.approx(row["loss"], abs=1e-5)
        assert found.weights == origin


def test_it_says_when_the_weights_are_older_than_the_step(finished, capsys):
    found = replay(finished, 4)
    assert found.weights.endswith("step-00000002 (after step 2; the run was at 3)")
    assert main(["replay", str(finished), "--step", "4"]) == 0
    said = capsys.readouterr().out
    row = steps(finished)[3]
    assert all(name in said for name in row["ids"]) and f"logged: {row['loss']:.6f}" in said
    assert found.weights in said
    broken = finished / "checkpoints" / "step-00000002" / "manifest.json"
    text = broken.read_text()
    broken.write_text(json.dumps({"nothing.pt": [1, 1]}))
    assert "before the first step" in replay(finished, 4).weights
    broken.write_text(text)


@pytest.mark.parametrize("step", [0, 5])
def test_a_step_that_the_run_does_not_have(finished, step):
    with pytest.raises(UserError, match="has the steps 1 to 4"):
        replay(finished, step)
