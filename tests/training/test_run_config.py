"""The run config: every key is decided for resume, old keys name their new place, and mistakes cost no torch."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmchat.errors import UserError
from mmchat.settings import describe, validate
from mmchat.training.config import (
    MAY_CHANGE_ON_RESUME,
    MOVED,
    RunConfig,
    as_dict,
    changed_keys,
    load_run_config,
    load_written_config,
    may_change,
)
from mmchat.training.config.foreign_keys import FOREIGN_KEYS
from mmchat.training.run_dir import claim_run_dir
from tests.launching import ROOT, write_config
from tests.training_fixtures import run_values

MUST_NOT_CHANGE_ON_RESUME = {
    "model", "data", "trainable", "optimizer", "steps", "epochs", "batch_size", "precision", "trained_weights",
    "quantize", "ema", "seed", "overfit_one_batch", "distributed.zero_stage",
    *(f"objective.{key}" for key in (
        "kind", "fit", "augment_towers", "loss", "random_crop", "patch_dropout", "temperature", "pool", "head_layers",
        "head_dim", "augmentation", "label_smoothing", "distillation",
    )),
}  # fmt: skip
"""Decided on purpose. A new key belongs here or into `MAY_CHANGE_ON_RESUME`."""


@pytest.fixture
def values(tmp_path):
    return run_values(tmp_path, tmp_path / "model", tmp_path / "data.json")


def test_every_key_is_decided_for_resume():
    keys = [".".join(name for name in key.path if name != "NAME") for key in describe(RunConfig) if not key.is_group]
    decided = MAY_CHANGE_ON_RESUME | MUST_NOT_CHANGE_ON_RESUME

    def deciding(key):
        parts = key.split(".")
        return {".".join(parts[: depth + 1]) for depth in range(len(parts))} & decided

    assert {key: deciding(key) for key in keys if len(deciding(key)) != 1} == {}
    assert all(may_change(key) == bool(deciding(key) & MAY_CHANGE_ON_RESUME) for key in keys)
    assert decided == {name for key in keys for name in deciding(key)}  # no names of keys that are gone


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ({"overfit_one_batch": True}, {}, ["overfit_one_batch: True -> False"]),
        ({"objective": {"kind": "classify", "patch_dropout": 0.5}}, {"objective": "classify"},
         ["objective.patch_dropout: 0.5 -> 0.0"]),
        ({}, {"optimizer": {"lr": 2e-3, "warmup": 2, "weight_decay": 0.1}}, ["optimizer.lr: 0.001 -> 0.002"]),
        ({"objective": {"packing": {"tokens": 500}}}, {"micro_batch_size": 2}, []),
        ({}, {"on_bad_sample": "skip", "monitoring": {"stability": {"on_nan": "skip"}}, "workers": 3}, []),
        ({"checkpoint": {"every": 9}}, {"run_dir": "elsewhere", "resume": True}, []),
    ],
)  # fmt: skip
def test_what_may_change_on_resume(values, before, after, changed):
    old, new = (validate(RunConfig, values | changes, "here") for changes in (before, after))
    assert changed_keys(old, new) == changed


def test_deepspeeds_json_is_compared_by_content(tmp_path, values):
    def claim(path, **changes):
        distributed = {"deepspeed": path and str(path)}
        claim_run_dir(validate(RunConfig, values | changes | {"distributed": distributed}, "here"), print)

    def refused(message, path):
        with pytest.raises(UserError, match=rf"other settings \(distributed\.deepspeed: {message}"):
            claim(path, resume=True)

    first, moved = tmp_path / "first.json", tmp_path / "moved.json"
    first.write_text('{"zero_optimization": {"overlap_comm": true}}')
    claim(first)
    first.rename(moved)
    claim(moved, resume=True)
    refused(".*moved.json -> None", None)
    moved.write_text('{"zero_optimization": {"overlap_comm": false}}')
    refused("content of .*deepspeed.json -> content of .*moved.json", moved)
    (tmp_path / "run" / "deepspeed.json").unlink()  # of a run begun before copies were made: its path still counts
    claim(moved, resume=True)


def test_a_run_is_not_resumed_as_another(tmp_path, values):
    """`objective.patch_dropout` and `overfit_one_batch` were let through once."""
    values |= {"objective": {"kind": "classify", "patch_dropout": 0.5}, "overfit_one_batch": True, "resume": True}
    assert claim_run_dir(validate(RunConfig, values, "here"), print) is None
    assert claim_run_dir(validate(RunConfig, values | {"workers": 3}, "here"), print) is None
    for changes, message in (
        ({"objective": "classify"}, r"objective\.patch_dropout: 0\.5 -> 0\.0"),
        ({"overfit_one_batch": False}, "overfit_one_batch: True -> False"),
    ):
        with pytest.raises(UserError, match=rf"was started with other settings \({message}\); a resumed run must keep"):
            claim_run_dir(validate(RunConfig, values | changes, "here"), print)


def test_a_refused_resume_names_what_differs_and_how_to_train_longer(tmp_path, values):
    values |= {"resume": True}
    claim_run_dir(validate(RunConfig, values, "here"), print)
    run = tmp_path / "run"
    longer = values | {"steps": values["steps"] * 2, "optimizer": values["optimizer"] | {"lr": 0.5}, "workers": 3}
    new_run = f"start a new run from its model: --model {run}/model --run_dir NEW, without --resume"
    before = f"optimizer.lr: {values['optimizer']['lr']} -> 0.5; steps: {values['steps']} -> {longer['steps']}"
    message = f"{run} was started with other settings ({before}); a resumed run must keep them and its length. "
    for end in (f"To train longer or otherwise, resume it as it is to the end, then {new_run}",
                f"To train longer or otherwise, {new_run}"):  # fmt: skip
        with pytest.raises(UserError) as caught:
            claim_run_dir(validate(RunConfig, longer, "here"), print)
        assert str(caught.value) == message + end
        (run / "model").mkdir(exist_ok=True)
        (run / "model" / "config.json").write_text("{}")


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_key_at_its_old_place_names_its_new_one(tmp_path, values, old):
    group, _, name = old.rpartition(".")
    path = write_config(tmp_path / "run.yaml", **values, **({group: {name: 1}} if group else {name: 1}))
    with pytest.raises(UserError) as caught:
        load_run_config(path, [])
    assert str(caught.value) == f"{path}: key {old!r} has moved to {MOVED[old]!r}"
    path = write_config(tmp_path / "run.yaml", **values)
    with pytest.raises(UserError) as caught:
        load_run_config(path, [f"--{old}", "1"])
    assert str(caught.value) == f"command line: key {old!r} has moved to {MOVED[old]!r}"


def test_new_places_exist():
    known = {".".join(key.path) for key in describe(RunConfig)}
    assert set(MOVED.values()) <= known
    assert not set(MOVED) & known


def test_the_config_of_an_earlier_layout_is_read(tmp_path, values):
    """A run wrote all keys of all objectives into config.yaml."""
    earlier = values | {
        "fit": None, "packing": None, "feature_cache": None, "augment_towers": [], "label_smoothing": 0.1,
        "distillation": None, "augmentation": {"jitter": 0.4}, "patch_dropout": 0.2, "zero_shot": None,
        "contrastive": {"loss": "softmax", "random_crop": False}, "simclr": {"temperature": 0.1, "pool": "mean"},
        "zero_stage": 2, "offload": "none", "activation_checkpointing": {}, "deepspeed": None, "trackers": ["wandb"],
        "peak_tflops": None, "stability": {"on_nan": "skip"}, "objective": "classify",
    }  # fmt: skip
    config = load_written_config(write_config(tmp_path / "config.yaml", **earlier))
    objective = {"kind": "classify", "label_smoothing": 0.1, "augmentation": {"jitter": 0.4}, "patch_dropout": 0.2}
    monitoring = {"trackers": ["wandb"], "stability": {"on_nan": "skip"}}
    now = values | {"objective": objective, "distributed": {"zero_stage": 2}, "monitoring": monitoring}
    assert config == validate(RunConfig, now, "now")
    earlier |= {"objective": "simclr", "augmentation": None, "label_smoothing": None}
    config = load_written_config(write_config(tmp_path / "config.yaml", **earlier))
    assert config.objective.temperature == 0.1 and config.objective.patch_dropout == 0.2


def test_the_written_config_is_read_as_it_is(tmp_path, values):
    config = validate(RunConfig, values | {"objective": {"packing": {"tokens": 9}}}, "here")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(as_dict(config)))
    assert load_written_config(path) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"lr": 1, "name": "muon"}, "distributed": {"zero_stage": 1}}, "needs whole matrices"),
        (
            {"trainable": {"x": {"mode": "lora", "dora": True}}, "distributed": {"zero_stage": 3}},
            "dora computes norms of whole weights, which ZeRO 3 shards: set distributed.zero_stage to 2",
        ),
        ({"distributed": {"activation_checkpointing": ["text_encoder"]}}, "objective assistant has no text_encoder"),
        (
            {"objective": "simclr", "distributed": {"activation_checkpointing": ["language_model"]}},
            "its parts are",
        ),
        ({"objective": "classify", "trainable": {"towers": "lora"}}, "lora is for objective assistant"),
        ({"objective": {"packing": {}}, "micro_batch_size": 2}, "already limits a forward; leave out micro_batch_size"),
        ({"trainable": {"towers": {"rnak": 4}}}, "unknown key 'trainable.towers.rnak'; the nearest .* .*.rank'"),
        ({"data": {"path": "x", "draft": True}, "objective": {"feature_cache": "y"}}, "leave draft out"),
    ],
)
def test_groups_must_agree(values, changes, message):
    with pytest.raises(UserError, match=rf"^here: [^\n]*{message}[^\n]*$"):
        validate(RunConfig, values | changes, "here")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("learning_rate", "here it is optimizer.lr"),
        ("bf16", "here it is precision: bf16"),
        (
            "per_device_train_batch_size",
            "over all GPUs: per_device_train_batch_size x gradient_accumulation_steps x",
        ),
        ("gradient_accumulation_steps", "how often a step accumulates follows from both"),
        ("cutoff_len", "here it is data.max_length"),
        ("model_max_length", "here it is data.max_length"),
        ("lora_rank", "trainable.language_model: {mode: lora, rank: 64"),
        ("lora_r", "trainable.language_model: {mode: lora, rank: 64"),
        ("save_steps", "here it is checkpoint.every"),
        ("gradient_checkpointing", "distributed.activation_checkpointing: [language_model]"),
        ("report_to", "monitoring.trackers: [tensorboard, wandb]"),
        ("warmup_ratio", "here it is optimizer.warmup"),
        ("lr_scheduler_type", "here it is optimizer.schedule"),
        ("num_train_epochs", "here it is epochs"),
        ("output_dir", "here it is run_dir"),
        ("optimizer.learning_rate", "here it is optimizer.lr"),
    ],
)
def test_keys_of_other_trainers_lead_to_ours(tmp_path, values, key, said):
    path = write_config(tmp_path / "run.yaml", **values)
    with pytest.raises(UserError) as caught:
        load_run_config(path, [f"--{key}", "1"])
    assert str(caught.value).startswith(f"command line: unknown key {key!r}; ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_advice_about_foreign_keys_names_keys_that_there_are():
    paths = [".".join(key.path).replace(".NAME", "") for key in describe(RunConfig)]
    known = {*paths, "trainable.projectors", "trainable.towers", "trainable.language_model"}
    top = {name.partition(".")[0] for name in known}
    assert not top & FOREIGN_KEYS.keys() and not FOREIGN_KEYS.keys() & MOVED.keys()
    named = {word for advice in FOREIGN_KEYS.values() for word in re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+\b", advice)}
    named = {name for name in named if name.partition(".")[0] in top}
    assert named > {"optimizer.lr", "data.max_length", "checkpoint.every"}
    assert not named - known
    single = {match for advice in FOREIGN_KEYS.values() for match in re.findall(r"^here it is (\w+)(?![\w.])", advice)}
    assert single - {"a", "part", "the"} <= top


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("wibble", "unknown key 'wibble'; the keys here are run_dir, model, objective, "),
        ("optimizer.wibble", "unknown key 'optimizer.wibble'; the keys here are name, lr, betas, "),
    ],
)
def test_where_no_key_is_near_none_is_named(values, key, said):
    outer, _, inner = key.rpartition(".")
    changed = values | ({outer: values[outer] | {inner: 1}} if outer else {inner: 1})
    with pytest.raises(UserError, match=f"^here: {said}") as caught:
        validate(RunConfig, changed, "here")
    assert "nearest" not in str(caught.value)


WITHOUT_TORCH = """
import resource, runpy, sys
sys.argv, status = sys.argv[1:], 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__") if sys.argv[0].endswith(".py") else runpy.run_module(
        sys.argv[0], run_name="__main__"
    )
except SystemExit as end:
    status = end.code or 0
finally:
    heavy = [name for name in ("torch", "transformers", "deepspeed") if name in sys.modules]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print("HEAVY", heavy, status, usage.ru_utime + usage.ru_stime, file=sys.stderr)
"""


def run_without_torch(*arguments: str | Path) -> tuple[str, list[str]]:
    """Exit status, and what was printed, of a program that must not import torch; it may take 1.5 s of CPU."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    *said, last = done.stderr.splitlines()
    heavy, status, seconds = last.removeprefix("HEAVY ").rsplit(" ", 2)
    assert heavy == "[]", done.stderr
    assert float(seconds) < 1.5
    return status, said or done.stdout.splitlines()


@pytest.mark.parametrize("program", [["mmchat.cli.main", "train"], ["scripts/train.py"], ["mmchat.cli.main", "plan"]])
def test_mistakes_are_answered_without_torch(tmp_path, values, program):
    assert run_without_torch(*program, "nosuch.yaml") == ("2", ["error: config nosuch.yaml does not exist"])
    path = write_config(tmp_path / "run.yaml", **values, stepz=3, packing={})
    status, said = run_without_torch(*program, path)
    assert status == "2"
    said[0] = said[0].removeprefix("error: ")
    assert sorted(said) == [
        f"{path}: key 'packing' has moved to 'objective.packing'",
        f"{path}: unknown key 'stepz'; the nearest valid key is 'steps'",
    ]


@pytest.mark.parametrize("program", [["mmchat.cli.main", "train"], ["scripts/train.py"], ["mmchat.cli.main", "plan"]])
def test_help_is_answered_without_torch(program):
    status, said = run_without_torch(*program, "--help")
    assert status == "0" and said[0].startswith("usage: ")
