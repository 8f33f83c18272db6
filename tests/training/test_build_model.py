"""A model is opened in full precision; under ZeRO 3 no rank ever holds all of it, and what comes out is whole."""

import pytest
import torch
from safetensors.torch import load_file

from mmchat.model.directory import comparison_logits, load_assistant, save_assistant
from mmchat.settings import load_settings
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from tests.launching import ROOT, launch, run_ranks, steps, write_config
from tests.training_fixtures import run_values, write_records

LORA = {"towers": "frozen", "projectors": "full", "language_model": {"mode": "lora", "rank": 4, "dropout": 0.0}}


@pytest.fixture(scope="module")
def bf16_run(tmp_path_factory, make_assistant):
    """The config of a run on a model directory that holds bf16 weights."""
    folder = tmp_path_factory.mktemp("opening")
    model, processor = make_assistant()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    save_assistant(model, processor, folder / "model")
    values = run_values(folder, folder / "model", write_records(folder / "data", 8), trainable=LORA)
    return folder, write_config(folder / "run.yaml", **values)


def test_bf16_weights_are_trained_in_full_precision(bf16_run):
    folder, config = bf16_run
    model = build_model(load_settings(RunConfig, config, [])).objective.model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    written = load_file(folder / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    name = "projectors.0.0.weight"
    assert torch.equal(model.get_parameter(name), written[name].float())


@pytest.mark.slow
def test_adapters_from_zero_3_are_those_of_one_rank_and_the_merged_model_is_as_small_as_asked_for(bf16_run):
    folder, config = bf16_run
    for name, ranks, stage in (("one", 1, "0"), ("shared", 2, "3")):
        words = ["--run_dir", str(folder / name), "--distributed.zero_stage", stage, "--save_precision", "bf16"]
        result = launch(config, *words, ranks=ranks)
        assert result.returncode == 0, result.stdout
    for row, reference in zip(steps(folder / "shared"), steps(folder / "one"), strict=True):
        assert row["loss"] == pytest.approx(reference["loss"], abs=1e-4)
    shared, one = (load_file(folder / name / "adapter" / "adapter_model.safetensors") for name in ("shared", "one"))
    assert shared.keys() == one.keys()
    assert max((shared[key] - one[key]).abs().max() for key in one) < 1e-4
    models = [load_assistant(folder / name / "model") for name in ("shared", "one")]
    assert {parameter.dtype for model, _ in models for parameter in model.parameters()} == {torch.bfloat16}
    logits = [comparison_logits(model, processor).float() for model, processor in models]
    assert (logits[0] - logits[1]).abs().max() < 0.05 * logits[1].abs().max()


@pytest.mark.slow
def test_no_rank_holds_a_full_copy_under_zero_3(tmp_path, make_assistant):
    sizes = {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 16}
    model, processor = make_assistant(**sizes)
    whole = 4 * sum(parameter.numel() for parameter in model.parameters())
    save_assistant(model, processor, tmp_path / "model")
    values = run_values(
        tmp_path, tmp_path / "model", write_records(tmp_path / "data", 8), distributed={"zero_stage": 3}
    )
    config = write_config(tmp_path / "run.yaml", **values)
    script = ROOT / "tests" / "training" / "memory_of_build_model.py"
    # A fixed threshold: large blocks go back when they are freed, instead of leaving holes between others.
    run_ranks(script, config, tmp_path, ranks=2, MALLOC_MMAP_THRESHOLD_="65536")
    highest, kept = zip(*(map(int, (tmp_path / str(rank)).read_text().split()) for rank in range(2)), strict=True)
    assert max(highest) < 0.6 * whole, (highest, whole)
    assert sum(kept) > 0.95 * whole, (kept, whole)  # otherwise the weights were not seen
