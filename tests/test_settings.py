"""YAML and overrides become typed settings; whatever does not fit is named, with its nearest neighbour."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import Field

from mmchat.cli.train import help_text, split_arguments
from mmchat.errors import UserError
from mmchat.settings import describe, load_settings, parse_overrides, settings, validate
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
        (["--optimizer.le", "5"], r"unknown key 'optimizer\.le'; the nearest valid key is 'optimizer\.lr'$"),
        (["--lr", "5"], r"unknown key 'lr'; the nearest valid key is 'optimizer\.lr'$"),
        (["--optimzer.lr", "5"], r"unknown key 'optimzer'; the nearest valid key is 'optimizer'$"),
        (["--steps", "many"], r"steps: Input should be a valid integer.*found 'many'$"),
        (["--steps", "0"], r"steps: Input should be greater than 0, found 0$"),
        (["--optimizer.lr", "fast"], r"optimizer\.lr: Input should be a valid number.*found 'fast'$"),
        (["--kind", "c"], r"kind: Input should be 'a' or 'b', found 'c'$"),
        (["--name", "[1]"], r"name: Input should be a valid string, found \[1\]$"),
        (["--optimizer", "null"], r"optimizer: .*found None$"),
    ],
)
def test_what_does_not_fit(config, words, message):
    with pytest.raises(UserError, match=rf"^{config}: " + message):
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


def leaves(schema: type, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for item in fields(schema):
        kinds = [item.type, *get_args(item.type)]
        kinds += [kind.__origin__ for kind in kinds if get_origin(kind) is Annotated]
        inner: Any = next((kind for kind in kinds if is_dataclass(kind)), None)
        name = f"{prefix}{item.name}" + ".NAME" * str(item.type).startswith("dict[")
        found |= leaves(inner, f"{name}.") if inner else {prefix + item.name}
    return found


def test_help_lists_every_key_with_its_meaning():
    keys = leaves(RunConfig)
    assert {"optimizer.lr", "data.path", "validation.every", "run_dir"} <= keys
    text = help_text()
    for path, _, default, meaning in describe(RunConfig):
        key = ".".join(path)
        keys.remove(key)
        line = next(line for line in text.splitlines() if line.split()[:1] == [f"--{key}"])
        assert len(meaning) > 5, key
        assert meaning in line
        assert default in line
        assert default, key
    assert not keys


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
