"""Steps that must not be taken are not: neither weights nor moments nor the schedule of the others notice."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmchat.training.config import OptimizerConfig, StabilityConfig
from mmchat.training.monitoring.nan_guard import MIN_HISTORY, PATIENCE, IncidentLog, NanGuard
from tests.launching import launch, metrics, steps, write_config
from tests.training_fixtures import run_values, write_records

USUAL = [(2.0, 1.0), (2.2, 1.4)] * (MIN_HISTORY // 2)


def judge(guard, loss, grad_norm):
    guard.begin(loss)
    passed = guard.passes(grad_norm)
    incident = guard.end(grad_norm)
    return passed, incident and incident.action


def test_numbers_that_are_none_are_never_taken():
    for action in ("stop", "skip"):
        guard = NanGuard(StabilityConfig(on_nan=action))
        for loss, norm in ((math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)):
            assert judge(guard, loss, norm) == (False, action)


@pytest.mark.parametrize(("action", "passed"), [("warn", True), ("skip", False), ("stop", False)])
def test_a_spike_of_loss_or_norm(action, passed):
    for loss, norm, word in ((6.5, 1.0, "loss"), (2.0, 3.7, "gradient norm")):
        guard = NanGuard(StabilityConfig(spike_factor=3.0, on_spike=action))
        assert [judge(guard, *values) for values in USUAL] == [(True, None)] * MIN_HISTORY
        assert judge(guard, loss, norm) == (passed, action)
        assert guard.incident.reason.startswith(f"the {word} is {loss if word == 'loss' else norm}")
        assert judge(guard, 6.0, 3.0) == (True, None)


def test_no_spikes_without_a_factor_nor_before_there_is_a_measure():
    guard = NanGuard(StabilityConfig())
    assert all(judge(guard, *values) == (True, None) for values in [*USUAL, (1e9, 1e9)])
    guard = NanGuard(StabilityConfig(spike_factor=2.0, on_spike="stop"))
    assert all(judge(guard, *values) == (True, None) for values in [*USUAL[1:], (1e9, 1e9)])


def test_skipped_spikes_do_not_become_usual_and_too_many_stop():
    guard = NanGuard(StabilityConfig(spike_factor=3.0, on_spike="skip"))
    for values in USUAL:
        judge(guard, *values)
    actions = [judge(guard, 100.0, 1.0)[1] for _ in range(PATIENCE)]
    assert actions == ["skip"] * (PATIENCE - 1) + ["stop"]
    assert "in a row" in guard.incident.reason


def test_a_resumed_guard_judges_as_the_first(tmp_path):
    first, second = (NanGuard(StabilityConfig(spike_factor=3.0, on_spike="skip")) for _ in range(2))
    for values in USUAL:
        judge(first, *values)
    judge(first, math.nan, 1.0)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    assert judge(second, 6.5, 1.0) == (False, "skip")


def test_incidents_of_steps_that_are_run_again_are_dropped(tmp_path):
    guard = NanGuard(StabilityConfig(on_nan="skip"))
    judge(guard, math.nan, math.inf)
    log = IncidentLog(tmp_path / "incidents.jsonl", 0)
    assert not log.path.exists()
    for step in (2, 5):
        log.write(step, guard.incident, ["a b"])
    IncidentLog(log.path, 4).write(6, guard.incident, [])
    rows = [json.loads(line, parse_constant=pytest.fail) for line in log.path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 6]
    assert rows[0] == {
        "step": 2, "reason": "the loss is nan", "action": "skip", "loss": "nan", "grad_norm": "inf", "ids": ["a b"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_refused_step_changes_neither_weights_nor_moments(name):
    from mmchat.training.deepspeed_engine import _before_step
    from mmchat.training.monitoring.grad_norms import ModuleGradNorms
    from mmchat.training.optim.optimizer import build_optimizer
    from mmchat.training.optim.param_groups import apply_rules
    from mmchat.training.optim.trainable import Rule

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    groups = apply_rules(model, {"0": Rule(), "1": Rule()})
    optimizer = build_optimizer(model, groups, OptimizerConfig(name=name, lr=0.1, weight_decay=0.5))
    guard = NanGuard(StabilityConfig(on_nan="skip"))

    class Engine:
        def __init__(self):
            self.optimizer = optimizer

        def zero_optimization(self):
            return False

    optimizer.register_step_pre_hook(_before_step(Engine(), 1.0, guard, ModuleGradNorms(groups, sharded=False)))

    def step(scale):
        optimizer.zero_grad()
        (model(torch.ones(1, 4)).sum() * scale).backward()
        guard.begin(1.0)
        optimizer.step()

    def everything():
        state = optimizer.state_dict()
        return json.dumps(state, default=lambda t: t.tolist()), [p.tolist() for p in model.parameters()]

    step(1.0)
    before = everything()
    step(math.nan)
    assert guard.incident.reason == "the gradient norm is nan"
    assert everything() == before
    step(1.0)
    assert guard.incident is None and everything() != before


@pytest.fixture
def planted(tmp_path, assistant_dir):
    """Twelve records; only r4 has a word whose embedding is NaN. Six steps of four: two of them see r4."""
    from mmchat.model.directory import load_assistant

    data = write_records(tmp_path / "data", 12)
    records = json.loads(data.read_text())
    records[4]["conversations"][1]["value"] += " @"
    data.write_text(json.dumps(records))
    model = tmp_path / "model"
    model.mkdir()
    for file in assistant_dir.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    _, processor = load_assistant(model)
    (rare,) = set(processor.render(_messages(records[4])).input_ids) - {
        token for r in records if r["id"] != "r4" for token in processor.render(_messages(r)).input_ids
    }
    weights = load_file(model / "model.safetensors")
    (name,) = (key for key in weights if key.endswith("embed_tokens.weight"))
    weights[name][rare] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    values = run_values(tmp_path, model, data, steps=6, batch_size=4, micro_batch_size=1, workers=1)
    return tmp_path, write_config(tmp_path / "run.yaml", **values), name, rare


def _messages(record):
    return record["conversations"]


def check_skipped(folder, result, name, rare):
    assert result.returncode == 0, result.stdout
    run = folder / "run"
    incidents = [json.loads(line, parse_constant=pytest.fail) for line in (run / "incidents.jsonl").open()]
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    skipped = [row for row in rows if "skipped" in row]
    assert len(incidents) == len(skipped) == 2
    for incident, row in zip(incidents, skipped, strict=True):
        assert incident["step"] == row["step"] and incident["ids"] == row["ids"] and "r4" in row["ids"]
        assert incident["loss"] == "nan" and "loss" not in row
    assert all(math.isfinite(row["loss"] + row["grad_norm"]) for row in steps(run))
    # The schedule went on: every step has the rate of its number.
    assert [row["lr"] for row in rows[:3]] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert len({row["lr"] for row in rows[2:]}) == 4
    assert "4 and 2 skipped" in result.stdout
    assert "2 incidents" in (run / "report.html").read_text()
    trained = load_file(run / "model" / "model.safetensors")
    trained[name][rare] = 0.0
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())


def test_a_planted_nan_is_skipped_on_two_ranks_with_accumulation(planted):
    folder, config, name, rare = planted
    check_skipped(folder, launch(config, "--monitoring.stability.on_nan", "skip", ranks=2), name, rare)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1", "2"])
def test_a_planted_nan_is_skipped_under_zero(planted, stage):
    folder, config, name, rare = planted
    check_skipped(
        folder,
        launch(config, "--monitoring.stability.on_nan", "skip", "--distributed.zero_stage", stage, ranks=2),
        name,
        rare,
    )


@pytest.mark.slow
def test_a_planted_nan_stops_with_its_ids(planted):
    folder, config, *_ = planted
    result = launch(config, ranks=2)
    assert result.returncode == 2, result.stdout
    assert result.stdout.count("error: ") == 1 and "Traceback" not in result.stdout, result.stdout
    (row,) = [json.loads(line) for line in (folder / "run" / "incidents.jsonl").open()]
    assert row["action"] == "stop" and "r4" in row["ids"] and '"r4"' in result.stdout
    assert f"mmchat replay {folder / 'run'} --step {row['step']}" in result.stdout
