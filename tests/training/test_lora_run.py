"""LoRA through the real launcher: one rank and two with ZeRO 2 give the same, and what a run leaves can be used."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file

from mmchat.cli.main import main
from mmchat.model.directory import comparison_logits, load_assistant
from tests.launching import launch, steps, write_config
from tests.training_fixtures import run_values, write_mixture

SPLITS = {"whole": {}, "ranks": {"micro_batch_size": 2, "distributed": {"zero_stage": 2}}}
UPDATE = {"mode": "lora", "rank": 4, "alpha": 8, "dropout": 0.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, assistant_dir):
    """name -> (run directory, what was printed); attention and the tower adapted, the projector in full."""
    folder = tmp_path_factory.mktemp("lora")
    data = write_mixture(folder / "data", 24)
    trainable = {
        "towers": {**UPDATE, "rank": 2},
        "projectors": {"mode": "full", "lr": 2e-3},
        "language_model": {**UPDATE, "targets": ["q_proj", "v_proj"], "weight_decay": 0.0},
    }
    found = {}
    for name, split in SPLITS.items():
        (folder / name).mkdir()
        values = run_values(folder / name, assistant_dir, data, trainable=trainable, **split)
        values["optimizer"]["lr"] = 1e-2
        result = launch(write_config(folder / name / "run.yaml", **values), ranks=1 + (name == "ranks"), COLUMNS="120")
        assert result.returncode == 0, f"{name}:\n{result.stdout}"
        found[name] = folder / name / "run", result.stdout
    return found


def test_the_table_and_the_end_say_what_was_done(runs):
    directory, printed = runs["whole"]
    rows = {line.split()[0]: line for line in printed.splitlines() if line.startswith(("towers ", "language_model "))}
    # Two blocks; q: 32 -> 32 and v: 32 -> 16, each rank 4.
    assert "lora r4 a8" in rows["language_model"] and " 896 " in rows["language_model"]
    assert "lora r2 a8" in rows["towers"]
    assert "no gradient" not in printed and "Warning" not in printed
    assert "adapter merged into the model; logits differ by at most" in printed
    assert f"adapter  {directory / 'adapter'}" in printed


def test_it_does_not_depend_on_ranks_and_zero(runs):
    whole, split = (runs[name][0] for name in SPLITS)
    for reference, row in zip(steps(whole), steps(split), strict=True):
        assert row["ids"] == reference["ids"]
        assert row["loss"] == pytest.approx(reference["loss"], abs=2e-5)
        assert row["grad_norm"] == pytest.approx(reference["grad_norm"], rel=2e-4)
    reference, trained = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (whole, split))
    assert reference.keys() == trained.keys() and reference
    # Adam divides by the gradient's own size, so rounding in a near-zero gradient shows in full.
    assert all((trained[key] - tensor).abs().max() < 1e-3 for key, tensor in reference.items())


@pytest.mark.parametrize("name", SPLITS)
def test_the_base_stays_bit_identical(runs, assistant_dir, name):
    """In the last checkpoint, where adapters and base lie side by side."""
    directory, _ = runs[name]
    checkpoint = next((directory / "checkpoints").glob("step-*"))
    state = torch.load(checkpoint / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    trained = {key: tensor for key, tensor in state.items() if ".lora_" in key}
    kept = {key.replace(".base_layer.", "."): tensor for key, tensor in state.items() if key not in trained}
    base = load_file(assistant_dir / "model.safetensors")
    assert set(base) <= set(kept) and len(trained) == 2 * (4 + 12)
    changed = {key for key in base if not torch.equal(base[key], kept[key])}
    assert changed == {key for key in base if key.startswith("projectors.")}
    assert all(tensor.any() for tensor in trained.values())


@pytest.mark.parametrize("name", SPLITS)
def test_model_is_base_and_adapter_as_plain_peft_puts_them_together(runs, assistant_dir, name):
    directory, _ = runs[name]
    model, processor = load_assistant(assistant_dir)
    before = comparison_logits(model, processor)
    adapted = comparison_logits(peft.PeftModel.from_pretrained(model, directory / "adapter").eval(), processor)
    merged, _ = load_assistant(directory / "model")
    torch.testing.assert_close(comparison_logits(merged, processor), adapted, rtol=0, atol=1e-5)
    assert (adapted - before).abs().max() > 0.05


def test_nothing_that_is_shared_names_a_path_of_this_machine(runs, tmp_path_factory):
    home = str(tmp_path_factory.getbasetemp()).encode()
    for folder in ("model", "adapter"):
        files = list((runs["whole"][0] / folder).iterdir())
        assert len(files) > 5
        assert [file.name for file in files if home in file.read_bytes()] == []


def test_merge_command_writes_the_same_model(runs, tmp_path, capsys):
    directory, _ = runs["whole"]
    assert main(["merge", str(directory / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    assert "merged; logits differ from the adapted model's by at most" in capsys.readouterr().out
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "merged", directory / "model"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert {p.name for p in (tmp_path / "merged").iterdir()} == {p.name for p in (directory / "model").iterdir()}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "mmchat"
