"""Every recipe in configs/ parses against its schema and opens with what its user needs to know."""

import json
from pathlib import Path

import pytest

from mmchat.cli.main import main
from mmchat.settings import load_settings
from mmchat.training.config import RunConfig
from mmchat.vision import TowerConfig, build_tower

ROOT = Path(__file__).resolve().parent.parent
YAMLS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_there_are_recipes():
    assert {path.stem for path in YAMLS} >= {"tower", "projector", "sft"}


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_recipe_parses_and_names_command_hardware_and_result(path):
    config = load_settings(RunConfig, path, [])
    assert config.steps or config.epochs
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    said = "\n".join(head)
    assert f"scripts/train.py {path.relative_to(ROOT)}" in said
    assert "Hardware:" in said and "Expected:" in said


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_a_mistyped_key_of_a_recipe_is_refused(path, tmp_path):
    broken = tmp_path / path.name
    broken.write_text(path.read_text().replace("batch_size:", "batchsize:"))
    with pytest.raises(ValueError, match="unknown key 'batchsize'; the nearest valid key is 'batch_size'"):
        load_settings(RunConfig, broken, [])


def test_each_recipe_has_one_entry_in_the_list(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["recipe", "list"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(not line.startswith(" ") for line in lines) == len(YAMLS)
    assert max(map(len, lines)) <= 80


def test_tower_configs_build():
    spec = build_tower(TowerConfig.from_dict(json.loads((ROOT / "configs/quickstart/tower.json").read_text()))).spec
    assert spec.tokens == 256


def test_the_committed_test_is_fixed_and_balanced():
    """At least 8 kinds of question, none over 20 %, images of one to four digits."""
    records = json.loads((ROOT / "configs/quickstart/heldout.json").read_text())
    kinds = [kind for record in records for kind in record["kinds"]]
    assert len(set(kinds)) >= 8
    assert max(map(kinds.count, set(kinds))) <= 0.2 * len(kinds)
    assert all(len(record["sha256"]) == 64 for record in records)
    counts = {
        turns[1]["value"]
        for record in records
        for turns in zip(record["conversations"][::2], record["conversations"][1::2], strict=True)
        for kind in [record["kinds"][record["conversations"].index(turns[0]) // 2]]
        if kind == "count"
    }
    assert counts == {"1", "2", "3", "4"}


OWN = sorted((ROOT / "configs" / "own").glob("*.yaml"))


@pytest.mark.parametrize("path", OWN, ids=lambda p: p.stem)
def test_every_line_of_an_own_recipe_is_explained(path):
    lines = path.read_text().splitlines()
    assert len(OWN) == 3
    for line in lines:
        meaning = line.partition(" # ")[2]
        assert line.startswith("#") or line.endswith(":") or meaning.strip(), line
    assert max(map(len, lines)) <= 120


def test_own_recipes_follow_each_other():
    """Each starts from what the one before writes, and pretrain from what `mmchat init` of its header writes."""
    configs = {path.stem: load_settings(RunConfig, path, []) for path in OWN}
    assert f"--out {configs['pretrain'].model}\n" in (ROOT / "configs/own/pretrain.yaml").read_text()
    assert configs["sft"].model == configs["lora"].model == f"{configs['pretrain'].run_dir}/model"
    assert {config.data.path for config in configs.values()} == {"data.json"}
