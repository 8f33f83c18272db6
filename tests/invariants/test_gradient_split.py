"""The same data gives the same gradient, however a step is split over micro-batches, accumulation and ranks."""

import pytest
from safetensors.torch import load_file

from tests.launching import launch, steps, write_config
from tests.training_fixtures import run_values, write_mixture

SPLITS = {
    "whole": {"ranks": 1, "micro_batch_size": 8},
    "accumulated": {"ranks": 1, "micro_batch_size": 2},
    "two ranks": {"ranks": 2, "micro_batch_size": 4},
    "single samples on two ranks": {"ranks": 2, "micro_batch_size": 1},
    "two ranks, ZeRO 1": {"ranks": 2, "micro_batch_size": 2, "zero_stage": 1},
    "two ranks, ZeRO 2": {"ranks": 2, "micro_batch_size": 1, "zero_stage": 2},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, assistant_dir):
    """Every split trained for four steps from the same weights, on a mixture of three sources; every third record
    is text only, so with one sample a micro-batch a rank is often without pictures while the other has some."""
    folder = tmp_path_factory.mktemp("splits")
    data = write_mixture(folder / "data", 24)
    found = {}
    for name, split in SPLITS.items():
        own = folder / name.replace(" ", "-")
        own.mkdir()
        settings = {key: value for key, value in split.items() if key != "ranks"}
        config = write_config(own / "run.yaml", **run_values(own, assistant_dir, data, **settings))
        result = launch(config, ranks=split["ranks"])
        assert result.returncode == 0, f"{name}:\n{result.stdout}"
        found[name] = own / "run"
    return found


@pytest.mark.parametrize("name", [name for name in SPLITS if name != "whole"])
def test_loss_and_gradient_norm_do_not_depend_on_the_split(runs, name):
    for reference, row in zip(steps(runs["whole"]), steps(runs[name]), strict=True):
        assert row["ids"] == reference["ids"]
        assert (row["terms"], row["tokens"], row["images"]) == (
            reference["terms"],
            reference["tokens"],
            reference["images"],
        )
        assert row["loss"] == pytest.approx(reference["loss"], abs=2e-5)
        assert row["grad_norm"] == pytest.approx(reference["grad_norm"], rel=2e-4)


@pytest.mark.parametrize("name", [name for name in SPLITS if name != "whole"])
def test_trained_weights_do_not_depend_on_the_split(runs, name):
    reference = load_file(runs["whole"] / "model" / "model.safetensors")
    trained = load_file(runs[name] / "model" / "model.safetensors")
    assert trained.keys() == reference.keys()
    for key, tensor in reference.items():
        # Adam divides by the gradient's own size, so rounding in a near-zero gradient shows in full.
        assert (trained[key] - tensor).abs().max() < 5e-4, key


def test_the_weights_moved(runs, assistant_dir):
    before = load_file(assistant_dir / "model.safetensors")
    after = load_file(runs["whole"] / "model" / "model.safetensors")
    for part in ("towers.0.", "projectors.0.", "language_model."):
        assert any((after[k] - before[k]).abs().max() > 1e-3 for k in before if k.startswith(part)), part
