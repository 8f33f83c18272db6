"""A packed run is the padded run, step by step; the same after a resume in test_world_size.py."""

import pytest

from mmchat.errors import counted
from tests.launching import launch, metrics, steps, write_config
from tests.training_fixtures import run_values, write_mixture, write_records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def setup(tmp_path_factory, assistant_dir):
    """The last step of an epoch has fewer samples, and the last stretch of the held-out records, too."""
    folder = tmp_path_factory.mktemp("packing")
    data = write_mixture(folder / "data", 18)
    values = run_values(folder, assistant_dir, data, epochs=2.0, steps=None, optimizer={"lr": 1e-3})
    values["validation"] = {"path": str(write_records(folder / "heldout", 11)), "every": 2, "max_length": 400}
    config = write_config(folder / "run.yaml", **values)
    result = launch(config, "--run_dir", str(folder / "padded"))
    assert result.returncode == 0, result.stdout
    return folder, config


ROWS, GROUPS = "rows of at most 203 tokens", "samples of similar length, padded to at most 203 tokens"


@pytest.mark.parametrize(
    ("ranks", "zero_stage", "forwards"),
    [*((ranks, stage, ROWS) for ranks in (1, 2) for stage in range(4)), (2, 3, GROUPS)],
)
def test_losses_and_norms_are_those_of_padding(setup, ranks, zero_stage, forwards):
    folder, config = setup
    run = folder / f"{ranks}-{zero_stage}-{forwards == GROUPS}"
    options = ["--run_dir", str(run), "--distributed.zero_stage", str(zero_stage), "--objective.packing.tokens", "203"]
    options += ["--objective.packing.padded"] if forwards == GROUPS else []
    result = launch(config, *options, ranks=ranks)
    assert result.returncode == 0, result.stdout
    assert f"{counted(ranks, 'rank')} x {forwards}" in result.stdout
    for row, padded in zip(metrics(run), metrics(folder / "padded"), strict=True):
        assert row.get("validation_loss") == pytest.approx(padded.get("validation_loss"), abs=1e-5)
    for row, padded in zip(steps(run), steps(folder / "padded"), strict=True):
        assert row["fill"] > padded["fill"] and row["loss"] == pytest.approx(padded["loss"], abs=1e-5)
        assert row["grad_norm"] == pytest.approx(padded["grad_norm"], rel=1e-5)
        # Under ZeRO a module's gradient is one long vector, whose norm in fp32 is that much less exact.
        assert row["grad_norms"] == pytest.approx(padded["grad_norms"], rel=1e-4)
        for field in ("ids", "terms", "tokens", "images", "operations", "lr", "epoch"):
            assert row[field] == padded[field] and row[field] is not None, field
