"""Every code block of README.md and the site works as written: commands, run configs, Python, names of files."""

import argparse
import ast
import contextlib
import importlib
import io
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from mmchat.cli.main import build_commands, main, parse
from mmchat.cli.train import split_arguments
from mmchat.evaluation.tasks.definition import TaskConfig
from mmchat.settings import validate
from mmchat.training.config import RunConfig, load_run_config
from tests.clip_kinds import write_clip
from tests.docs.fences import commands_of, fences, fences_of, name_of, pages
from tests.launching import ROOT
from tests.test_layers import L0, MAY_IMPORT

ALL = fences()
LANGUAGES = {"bash", "yaml", "python", "json", "text", ""}
"""`text`, or none, is an illustration; so is any block below a `<!-- illustration -->` comment."""
CHECKED = [fence for fence in ALL if not fence.is_illustration]
EVERYDAY = {
    ".",
    "cd",
    "curl",
    "export",
    "git",
    "hf",
    "ollama",
    "openssl",
    "pip",
    "pytest",
    "pre-commit",
    "sbatch",
    "transformers",
    "vllm",
}
"""Commands that are not ours; `pip` and `sbatch` are looked at below."""
ENVIRONMENTS = re.compile(r"\.venv-\w+/bin/")
"""Folders of programs that scripts/foreign/ installs."""
OWN_CONFIGS = {"my.yaml", "sft.yaml", "pretrain.yaml", "lora.yaml"}
"""Names of the reader's own run config in the examples; what `mmchat recipe write own/NAME` writes among them."""


def of_language(language: str) -> list:
    found = [fence for fence in CHECKED if fence.language == language]
    return [pytest.param(fence, id=fence.place) for fence in found]


def test_every_block_has_a_language():
    assert len(CHECKED) > 50
    assert not [fence.place for fence in ALL if fence.language not in LANGUAGES]


# Commands


class Parsed(BaseException):
    """A program has parsed its arguments; what follows is its work."""


@pytest.fixture
def stop_after_parsing(monkeypatch):
    """Programs end where argparse has accepted their arguments. An error of argparse still exits with status 2."""
    original = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        original(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


@pytest.fixture
def check(tmp_path, stop_after_parsing, monkeypatch) -> Callable[[str], None]:
    """check(line) fails if a command line has an option, a script or a config key that does not exist."""
    monkeypatch.chdir(tmp_path)
    for script in (ROOT / "scripts").iterdir():
        (tmp_path / script.name).write_text("")

    def run(line: str) -> None:
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                check_command(shlex.split(line, comments=True))
        except Parsed:
            pass
        except SystemExit as end:
            assert not end.code, f"{line}\n{errors.getvalue()}"

    return run


def check_command(words: list[str]) -> None:
    program, *arguments = words
    program = ENVIRONMENTS.sub("", program)
    if program == "mmchat":
        check_mmchat(arguments)
    elif program in ("deepspeed", "torchrun"):
        check_launch(program, arguments)
    elif program == "python":
        script = ROOT / arguments[0]
        assert script.is_file(), f"{arguments[0]} does not exist"
        run_program(script, arguments[1:])
    elif program == "eval":  # what `$(python -m MODULE ...)` prints
        module, *rest = arguments[0].removeprefix("$(python -m ").removesuffix(")").split()
        import_module(module).main(rest)
    elif program == "bash":
        script = ROOT / arguments[0]
        text = script.read_text(encoding="utf-8")
        missing = [word for word in arguments[1:] if word.startswith("--") and word not in text]
        assert not missing, f"{arguments[0]} does not know {missing}"
    else:
        assert program in EVERYDAY, f"{program} is not a command that these pages use"
        check_everyday(program, arguments)


def check_mmchat(arguments: list[str]) -> None:
    if arguments[:1] == ["train"]:
        arguments = arguments[1:]
        if "--ranks" in arguments:
            at = arguments.index("--ranks")
            assert arguments[at + 1].isdigit()
            del arguments[at : at + 2]
        check_run(arguments)
        return
    parsers = build_commands()
    name = next((n for n in (" ".join(arguments[:count]) for count in (3, 2, 1)) if n in parsers), None)
    if name is None:  # a command that parses its own arguments, or none at all
        sys.exit(main(arguments))
    try:
        parsed = parse(parsers[name], arguments[len(name.split()) :])
    except Parsed:
        raise AssertionError("build_commands() must not parse") from None
    if parsers[name].get_default("takes_overrides"):
        check_run(["my.yaml", *parsed.overrides])


def check_launch(program: str, arguments: list[str]) -> None:
    at = arguments.index("scripts/train.py")
    launcher = arguments[: at + 1]
    try:
        if program == "deepspeed":
            from deepspeed.launcher.runner import parse_args

            parse_args(launcher)
        else:
            from torch.distributed.run import get_args_parser

            get_args_parser().parse_args(launcher)
    except Parsed:
        check_run(arguments[at + 1 :])


def check_run(arguments: list[str]) -> None:
    """CONFIG and overrides; a small valid config stands in for the reader's own."""
    path, overrides = split_arguments(arguments)
    if str(path) in OWN_CONFIGS:
        path.write_text(yaml.safe_dump(RUN))
    load_run_config(path if str(path) in OWN_CONFIGS else ROOT / path, overrides)


def run_program(script: Path, arguments: list[str]) -> None:
    before, sys.argv = sys.argv, [str(script), *arguments]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before


def check_everyday(program: str, arguments: list[str]) -> None:
    if program == "sbatch":
        assert (ROOT / "scripts" / arguments[0]).is_file()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [extra for word in arguments for found in re.findall(r"\[([\w,]+)\]", word) for extra in found.split(",")]
    assert program != "pip" or set(named) <= set(extras), f"{named} are not all extras of pyproject.toml"


@pytest.mark.parametrize("fence", of_language("bash"))
def test_commands(fence, check):
    for line in commands_of(fence.code):
        check(line)


@pytest.mark.parametrize(
    "line",
    [
        "mmchat init --langauge a --vision b --out c",
        "mmchat train my.yaml --optimizer.learning_rate 1e-4",
        "mmchat train configs/nosuch.yaml",
        "mmchat plan my.yaml --rank 2 --gpus H100-80GB",
        "mmchat teach",
        "deepspeed --gpus 8 scripts/train.py my.yaml",
        "torchrun --nproc_per_node 8 scripts/train.py my.yaml --stepz 3",
        "python data_tools/make_lines.py --output data",
        "python data_tools/convert.py vqa --input a --out b",
        "python data_tools/nosuch.py",
        "bash scripts/quickstart.sh --contrast",
        "pip install 'mmchat[gpu]'",
        "sbatch run.sbatch my.yaml",
        "llava train",
    ],
)
def test_a_wrong_command_is_found(line, check):
    with pytest.raises((AssertionError, ValueError)):
        check(line)


# Run configs

RUN = {
    "run_dir": "runs/mine",
    "model": "runs/init",
    "data": {"path": "data.json"},
    "trainable": {"towers": "full"},
    "optimizer": {"lr": 1e-4},
    "steps": 1,
    "batch_size": 1,
}
"""What a block leaves out."""


def check_config(text: str) -> None:
    values = yaml.safe_load(text)
    if "layouts" in values:  # a task of `mmchat eval`
        validate(TaskConfig, values, "block")
        return
    left_out = {key: value for key, value in RUN.items() if not (key == "steps" and "epochs" in values)}
    validate(RunConfig, {**left_out, **values}, "block")


@pytest.mark.parametrize("fence", of_language("yaml"))
def test_run_configs(fence):
    check_config(fence.code)


@pytest.mark.parametrize("text", ["zero_stage: 2", "objective: {kind: simclr, packing: {tokens: 9}}", "batch: 3"])
def test_a_wrong_config_is_found(text):
    with pytest.raises(ValueError):
        check_config(text)


# Python

STAND_INS = {
    "runs/quickstart/model": "assistant",
    "data/quickstart/heldout/000000.png": "image",
    "runs/clip/model": "clip",
    "photo.jpg": "image",
}
"""Paths in the examples that a test can provide. A block that reads others is only resolved, not run."""


@pytest.fixture(scope="module")
def stand_ins(assistant_dir, make_tower, make_image, data_dir, tmp_path_factory) -> Path:
    """A folder in which the examples find their models and images."""
    folder = tmp_path_factory.mktemp("examples")
    tokenizer = data_dir / "tokenizers" / "llama_like_legacy_false"
    for name, kind in STAND_INS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "assistant":
            path.symlink_to(assistant_dir)
        elif kind == "clip":
            write_clip(make_tower(), tokenizer, path)
        else:
            make_image().save(path)
    return folder


def unresolved(code: str) -> list[str]:
    """Imports of a block that do not exist."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names if not hasattr(module, alias.name)]
    return found


def paths_in(code: str) -> set[str]:
    """Strings of a block that name a file or folder."""
    texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    return {text for text in texts if isinstance(text, str) and re.fullmatch(r"[\w./-]*(/|\.)[\w./-]*\w", text)}


@pytest.mark.parametrize("fence", of_language("python"))
def test_python(fence, stand_ins, monkeypatch):
    assert not unresolved(fence.code)
    if paths_in(fence.code) <= set(STAND_INS):
        monkeypatch.chdir(stand_ins)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(fence.code, fence.place, "exec"), {"__name__": "example"})
        assert "print(" not in fence.code or printed.getvalue().strip()


def test_which_python_blocks_run():
    runs = [f.page for f in CHECKED if f.language == "python" and paths_in(f.code) <= set(STAND_INS)]
    assert runs.count("docs/guides/chat.md") == 2 and "docs/guides/clip.md" in runs


def test_a_wrong_import_is_found():
    assert unresolved("from mmchat.inference import Generator, Chat") == ["mmchat.inference.Chat"]


# Names of files and modules

ROOTS = ("mmchat", "data_tools", "bench", "configs", "scripts", "tests", "demo", "docs")


@pytest.mark.parametrize("page", [pytest.param(p, id=name_of(p)) for p in pages()])
def test_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for fence in fences_of(text, name_of(page)):
        if fence.language in ("text", "") or fence.is_illustration:
            text = text.replace(fence.code, "")
    named = re.findall(rf"(?<![\w./-])(?:{'|'.join(ROOTS)})/[\w./-]*\w", text)
    missing = {name for name in named if not (ROOT / name).exists()}
    assert not missing


def test_modules_that_architecture_names_exist():
    """`training.optim.frozen_weights`, `model.attention.PACKABLE`: the longest part of the name that is a module."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = "|".join(path.name for path in (ROOT / "mmchat").iterdir() if (path / "__init__.py").exists())
    named = set(re.findall(rf"`(?:mmchat\.)?((?:{packages})(?:\.\w+)+)`", text))
    assert len(named) > 5
    missing = [name for name in sorted(named) if not resolves(name.split("."))]
    assert not missing


def test_architecture_has_the_table_of_layers():
    """ "Who may import whom" names every package of tests/test_layers.py, and those of L0 in its first entry."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("## Who may import whom\n```text\n")[1].split("```")[0]
    lowest = set(re.findall(r"\w+", table.split("<-")[0])) - {"L0"}
    assert lowest == set(L0)
    assert set(MAY_IMPORT) - {"__init__"} <= set(re.findall(r"\w+", table))


def resolves(parts: list[str]) -> bool:
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath("mmchat", *parts[:count])
        if path.is_dir():
            return count == len(parts) or parts[count] in (path / "__init__.py").read_text(encoding="utf-8")
        if path.with_suffix(".py").is_file():
            return count == len(parts) or parts[count] in path.with_suffix(".py").read_text(encoding="utf-8")
    return False
