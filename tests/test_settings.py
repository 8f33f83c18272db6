"""YAML and overrides become typed settings; whatever does not fit is named, with its nearest neighbour."""

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field

from mmchat.cli.train import split_arguments
from mmchat.command_line.settings_help import settings_help
from mmchat.errors import UserError
from mmchat.settings import Elsewhere, Shorthand, describe, load_settings, parse_overrides, settings, validate
from mmchat.training.config import RunConfig, as_dict


@settings
class Optimizer:
    lr: float = Field(description="step size")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay")


@settings
class Run:
    name: str = Field(description="what it is called")
    optimizer: Optimizer = Field(description="how it learns")
    steps: int = Field(10, gt=0, description="how long")
    kind: Literal["a", "b"] = Field("a", description="which")
    limit: int | None = Field(None, description="at most")
    folder: Path | None = Field(None, description="where")
    loud: bool = Field(False, description="say more")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: first\noptimizer: {lr: 1e-3}\n")
    return path


def test_file_and_defaults(config):
    run = load_settings(Run, config, [])
    assert run == Run(name="first", optimizer=Optimizer(lr=0.001))
    assert run.optimizer.betas == (0.9, 0.999)
    with pytest.raises(AttributeError):
        run.steps = 3


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3", ".001", "+1e-3"])
def test_floats_as_people_write_them(config, text):
    """YAML 1.1 reads 1e-3 as a string; here it is a number, in the file and on the command line."""
    config.write_text(f"name: first\noptimizer: {{lr: {text}}}\n")
    assert load_settings(Run, config, []).optimizer.lr == 0.001
    assert load_settings(Run, config, ["--optimizer.lr", text]).optimizer.lr == 0.001
    assert load_settings(Run, config, [f"--optimizer.lr={text}"]).optimizer.lr == 0.001


def test_overrides(config):
    words = ["--local_rank=3", "--steps", "5", "--loud", "--optimizer.betas", "[0.5, 0.9]", "--kind=b"]
    run = load_settings(Run, config, [*words, "--limit", "7", "--folder", "here/there"])
    assert run == Run(
        name="first",
        optimizer=Optimizer(lr=0.001, betas=(0.5, 0.9)),
        steps=5,
        kind="b",
        limit=7,
        folder=Path("here/there"),
        loud=True,
    )
    assert load_settings(Run, config, ["--limit", "7", "--limit", "null"]).limit is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["--local_rank=0", "--local-rank=0"], {}),
        (["--a", "1", "--b"], {"a": 1, "b": True}),
        (["--a", "--b"], {"a": True, "b": True}),
        (["--a=-1", "--b", "-1"], {"a": -1, "b": -1}),
        (["--a=x=y"], {"a": "x=y"}),
        (["--a", "{b: [1, c]}"], {"a": {"b": [1, "c"]}}),
        (["--a="], {"a": None}),
    ],
)
def test_parse_overrides(words, expected):
    assert parse_overrides(words) == expected


def test_words_that_belong_to_no_key():
    with pytest.raises(UserError, match=r"unexpected argument 'five'; overrides are written --key value"):
        parse_overrides(["--steps", "5", "five"])
    with pytest.raises(UserError, match=r"--betas: '\[1, 2' is not a valid YAML value"):
        parse_overrides(["--betas", "[1, 2"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stepz", "5"], r"unknown key 'stepz'; the nearest valid key is 'steps'$"),
        (["--optimizer.le", "5"], r"unknown key 'optimizer\.le'; the keys here are lr, betas$"),
        (["--lr", "5"], r"unknown key 'lr'; the nearest valid key is 'optimizer\.lr'$"),
        (["--optimzer.lr", "5"], r"unknown key 'optimzer'; the nearest valid key is 'optimizer'$"),
        (["--steps", "many"], r"steps: Input should be a valid integer.*found 'many'$"),
        (["--steps", "0"], r"steps: Input should be greater than 0, found 0$"),
        (["--optimizer.lr", "fast"], r"optimizer\.lr: Input should be a valid number.*found 'fast'$"),
        (["--kind", "c"], r"kind: Input should be 'a' or 'b', found 'c'$"),
        (["--name", "[1]"], r"name: Input should be a valid string, found \[1\]$"),
        (["--optimizer", "null"], r"optimizer must hold key: value pairs, found None$"),
    ],
)
def test_what_does_not_fit(config, words, message):
    with pytest.raises(UserError, match="^command line: " + message):
        load_settings(Run, config, words)


def test_every_finding_has_its_line():
    with pytest.raises(UserError) as caught:
        validate(Run, {"stepz": 1, "optimizer": {"betas": [1]}}, "here.yaml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("here.yaml: ") for line in lines)
    assert {"here.yaml: key 'name' is missing", "here.yaml: key 'optimizer.lr' is missing"} < set(lines)
    assert any("unknown key 'stepz'" in line for line in lines)


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(UserError, match=r"config .*none\.yaml does not exist"):
        load_settings(Run, tmp_path / "none.yaml", [])
    with pytest.raises(UserError, match="is a folder, expected a YAML file"):
        load_settings(Run, tmp_path, [])
    path = tmp_path / "bad.yaml"
    for text, message in (("a: [", "is not valid YAML"), ("- a", "key: value pairs, found list"), ("", "NoneType")):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"bad\.yaml.*{message}"):
            load_settings(Run, path, [])


def test_help_lists_every_key_with_its_meaning(monkeypatch):
    """What a group has in common with an earlier one is listed by name: `--validation.KEY  as data.KEY: ...`."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = settings_help(RunConfig).splitlines()
    assert max(map(len, lines)) <= 80
    entries: dict[str, str] = {}
    name = ""
    for line in lines:
        entry = re.match(r"  --(\S+)(.*)", line)
        name = entry[1] if entry else name if line.startswith(" " * 10) else ""
        entries[name] = f"{entries.get(name, '')} {entry[2] if entry else line}"
    entries = {name: " ".join(text.split()) for name, text in entries.items()}
    for key in describe(RunConfig):
        name, group = ".".join(key.path), ".".join(key.path[:-1])
        assert len(key.meaning) > 5 and (key.default or key.is_group), name
        if name in entries:
            assert key.meaning in entries[name] or key.kinds, name
        elif not key.is_group and "sources.NAME" not in name:
            assert key.path[-1] in entries[f"{group}.KEY"], name
    assert entries["optimizer.lr"].endswith("[number; required]")
    assert entries["objective.kind"].endswith("[assistant | contrastive | simclr | classify; assistant]")
    assert "index" in entries["data.sources.NAME.KEY"] and "max_turns" in entries["validation.KEY"]


@settings
class Cat:
    kind: Literal["cat"] = Field("cat", description="purrs")
    lives: int = Field(9, description="how many")
    name: str | None = Field(None, description="what it hears")


@settings
class Dog:
    kind: Literal["dog"] = Field("dog", description="barks")
    tricks: dict[str, int] = Field(default_factory=dict, description="how well")
    name: str | None = Field(None, description="what it hears")


@settings
class Fish:
    kind: Literal["fish"] = Field("fish", description="swims")


@settings
class Home:
    pet: Annotated[Cat | Dog | Fish, Field(discriminator="kind"), Shorthand("kind", default="cat")] = Field(
        default_factory=Cat, description="who lives there"
    )
    rooms: int = Field(1, description="how many")


def test_an_override_below_a_value_without_keys_is_refused(tmp_path):
    """It would replace the value in silence."""
    (tmp_path / "run.yaml").write_text("name: x\noptimizer: [adamw, muon]\n")
    expected = (
        r"--optimizer\.lr: optimizer has no keys in the config, where it is \['adamw', 'muon'\]; give --optimizer "
    )
    with pytest.raises(UserError, match=expected):
        load_settings(Run, tmp_path / "run.yaml", ["--optimizer.lr", "1"])


@pytest.mark.parametrize(
    ("pet", "overrides", "expected"),
    [
        (None, [], Cat()),
        ("dog", [], Dog()),
        ({"kind": "dog", "name": "Rex"}, [], Dog(name="Rex")),
        ({"lives": 7}, [], Cat(lives=7)),
        ("dog", ["--pet.name", "Rex"], Dog(name="Rex")),  # a bare string is spelled out before a key is added
        ("cat", ["--pet", "dog"], Dog()),
        (None, ["--pet.tricks.sit", "3", "--pet.kind", "dog"], Dog(tricks={"sit": 3})),
    ],
)
def test_a_union_by_kind(tmp_path, pet, overrides, expected):
    path = tmp_path / "home.yaml"
    path.write_text(yaml.safe_dump({"rooms": 2} | ({} if pet is None else {"pet": pet})))
    assert load_settings(Home, path, overrides).pet == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pet": {"tricks": {}}}, "key 'pet.tricks' belongs to kind dog, but pet.kind is cat"),
        ({"pet": {"kind": "fish", "name": "x"}}, "key 'pet.name' belongs to kinds cat, dog, but pet.kind is fish"),
        ({"pet": {"kind": "cat", "live": 1}}, "unknown key 'pet.live'; the nearest valid key is 'pet.lives'"),
        ({"pet": "cow"}, "pet.kind must be one of cat, dog, fish, found 'cow'"),
        ({"pet": {"kind": "dog", "tricks": {"sit": "well"}}}, r"pet.tricks.sit: Input should be a valid integer"),
        ({"romms": 3}, "key 'romms' has moved to 'rooms'"),
        ({"house": {"rooms": 3, "pet": "cat"}}, "key 'house.rooms' has moved to 'rooms'"),
        ({"flat": {"names": 3}}, "the keys of 'flat' have moved to 'pet'"),
        ({"pet": 5}, "pet must hold key: value pairs, found 5"),
        ({"pet": None}, "pet must hold key: value pairs, found None"),
        ({"pet": {"kind": "dog", "tricks": 3}}, "pet.tricks must hold key: value pairs, found 3"),
    ],
)
def test_what_does_not_fit_a_union(values, message):
    with pytest.raises(UserError, match=rf"^here: {message}[^\n]*$"):
        validate(Home, values, "here", Elsewhere({"romms": "rooms", "house.rooms": "rooms", "flat.name": "pet.name"}))


def test_each_finding_names_where_it_was_written(config):
    config.write_text("name: 1\noptimizer: {lr: 1, bets: 2}\n")
    with pytest.raises(UserError) as caught:
        load_settings(Run, config, ["--stepz", "5", "--optimizer.lr", "x"])
    assert sorted(str(caught.value).splitlines()) == [
        f"{config}: name: Input should be a valid string, found 1",
        f"{config}: unknown key 'optimizer.bets'; the nearest valid key is 'optimizer.betas'",
        "command line: optimizer.lr: Input should be a valid number, unable to parse string as a number, found 'x'",
        "command line: unknown key 'stepz'; the nearest valid key is 'steps'",
    ]


def test_a_run_is_bounded_once(tmp_path):
    values = {
        "run_dir": "runs/x",
        "model": "m",
        "data": {"path": "d.json"},
        "trainable": {"projectors": "full"},
        "optimizer": {"lr": 1e-3},
        "batch_size": 4,
    }
    for extra in ({}, {"steps": 1, "epochs": 1}):
        with pytest.raises(UserError, match=r"^here: give exactly one of steps and epochs"):
            validate(RunConfig, values | extra, "here")
    config = validate(RunConfig, values | {"steps": 3}, "here")
    # The resolved copy in the run directory is a config again.
    assert validate(RunConfig, as_dict(config), "there") == config


def test_the_launcher_puts_its_rank_in_front():
    words = ["--local_rank=1", "configs/a.yaml", "--steps", "3"]
    assert split_arguments(words) == (Path("configs/a.yaml"), ["--local_rank=1", "--steps", "3"])
    assert split_arguments(["--steps", "3"]) == (None, ["--steps", "3"])
