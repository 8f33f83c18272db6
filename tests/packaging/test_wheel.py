"""An installed wheel has the converters, the recipes and the demo; so has an editable install."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import mmchat
from mmchat.bundled import folder

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    find_spec("build") is None or find_spec("hatchling") is None,
    reason="building a wheel needs the packages build and hatchling",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """run(*arguments): `mmchat` of the installed wheel, in a folder where no repository is."""
    place = tmp_path_factory.mktemp("installed")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(place / "site"),
    ]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    (place / "elsewhere").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(place / "site")}

    def run(*arguments: str) -> str:
        code = "import sys, mmchat; from mmchat.cli.main import main; print(mmchat.__file__); sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=place / "elsewhere",
            env=environment,
            capture_output=True,
            text=True,
        )
        file, _, output = done.stdout.partition("\n")
        assert done.returncode == 0, done.stderr
        assert file.startswith(str(place / "site"))
        return output

    return run


def test_a_wheel_holds_one_copy_of_each_file(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert top == {"mmchat", f"mmchat-{mmchat.__version__}.dist-info"}
    for file in ("mmchat/py.typed", "mmchat/_bundled/data_tools/convert.py", "mmchat/_bundled/demo/app.py"):
        assert names.count(file) == 1
    for name in ("configs", "data_tools", "demo"):
        tracked = subprocess.run(
            ["git", "ls-files", name], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.split()
        assert {f"mmchat/_bundled/{file}" for file in tracked} <= set(names)
    assert not [name for name in names if "/tests/" in name or name.endswith(".pyc")]


def test_commands_of_a_wheel(run):
    assert run("--version") == f"mmchat {mmchat.__version__}\n"
    listed = run("recipe", "list")
    assert "llava15/sft" in listed and "quickstart/tower" in listed
    assert "objective" in run("recipe", "show", "clip/digits")
    assert "--image-root" in run("convert", "--help")
    assert "--port" in run("demo", "--help")


def test_recipes_and_programs_of_a_checkout_are_the_repository_itself():
    assert not (Path(mmchat.__file__).parent / "_bundled").exists()
    for name in ("configs", "data_tools", "demo"):
        assert folder(name) == Path(mmchat.__file__).parents[1] / name


def test_every_import_is_declared():
    """A third-party module that mmchat, data_tools or demo imports is a dependency or belongs to an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    names = {re.split(r"[\[<>=~! ]", line)[0].lower().replace("-", "_") for line in declared}
    packages = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit_learn", "fontTools": "fonttools"}
    packages["pydantic_core"] = "pydantic"  # a part of it
    found: dict[str, Path] = {}
    for top in ("mmchat", "data_tools", "demo", "scripts"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in imported:
                    found.setdefault(name.partition(".")[0], path)
    own = {"mmchat", *(path.stem for top in ("data_tools", "demo") for path in (ROOT / top).iterdir())}
    # scripts/foreign installs them into their own environments
    foreign = {"vllm", "xllamacpp", "img2dataset", "cv2", "pycocoevalcap"}
    missing = {
        module: str(path.relative_to(ROOT))
        for module, path in found.items()
        if module not in sys.stdlib_module_names | own | foreign and packages.get(module, module).lower() not in names
    }
    assert not missing
