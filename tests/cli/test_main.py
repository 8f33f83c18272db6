"""`mmchat` itself: the table of commands, the version, closed pipes; and the commands about the installation."""

import json
import re
import subprocess
import sys
from pathlib import Path

from mmchat import __version__
from mmchat.command_line.errors import EXIT_PIPE_CLOSED

ROOT = Path(__file__).parents[2]


def test_version(run):
    assert run("--version") == (0, f"mmchat {__version__}\n", "")


def test_a_command_imports_no_other(tmp_path):
    code = "import sys; from mmchat.cli.main import build_parser; build_parser('merge'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.startswith("mmchat.cli.")}
    assert loaded == {"mmchat.cli.main", "mmchat.cli.merge"}


def test_help_imports_no_torch():
    code = "import sys; from mmchat.cli.main import build_commands; build_commands(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "deepspeed"} & set(done.stdout.split())


def test_a_closed_pipe_ends_quietly():
    command = [sys.executable, "-m", "mmchat.cli.main", "recipe", "show", "quickstart/sft"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", EXIT_PIPE_CLOSED)


def test_env(run):
    status, out, err = run("env")
    assert (status, err) == (0, "")
    assert out.startswith("mmchat: ") and "deepspeed accelerator: cpu" in out
    values = json.loads(run("env", "--json")[1])
    assert values["mmchat"] == __version__ and values["python"] and values["torch"] != "not installed"


def test_recipes(run, tmp_path, monkeypatch):
    names = [line.split()[0] for line in run("recipe", "list")[1].splitlines() if not line.startswith(" ")]
    configs = ROOT / "configs"
    assert names == sorted(str(path.relative_to(configs).with_suffix("")) for path in configs.rglob("*.yaml"))
    text = (ROOT / "configs/llava15/sft.yaml").read_text()
    assert run("recipe", "show", "llava15/sft") == (0, text, "")
    assert run("recipe", "show", "configs/llava15/sft.yaml") == (0, text, "")
    monkeypatch.chdir(tmp_path)
    assert run("recipe", "write", "llava15/sft") == (0, "sft.yaml\n", "")
    assert (tmp_path / "sft.yaml").read_text() == text
    assert run("recipe", "write", "llava15/lora", "--out", "sft.yaml")[2].startswith("error: sft.yaml exists")
    assert run("recipe", "write", "vision/tower.json", "--out", "new/tower.json")[0] == 0
    status, _, err = run("recipe", "show", "llava15/sftt")
    assert (status, err) == (
        2,
        "error: there is no recipe 'llava15/sftt'; the nearest is 'llava15/sft' (see `mmchat recipe list`)\n",
    )


def test_convert(run, tmp_path, make_image):
    make_image().save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("image,caption\na.png,a red seven\n")
    out = tmp_path / "out.jsonl"
    arguments = ["convert", "csv", "--input", tmp_path / "captions.csv", "--image-root", tmp_path, "--out", out]
    assert run(*arguments)[0] == 0
    assert json.loads(out.read_text())["image"] == "a.png"
    assert run("convert", "--help")[1].startswith("usage: mmchat convert ")


def test_demo_without_a_model(run, tmp_path):
    status, _, err = run("demo", "--model", tmp_path / "none")
    assert status == 2 and err.startswith(f"error: model directory {tmp_path / 'none'} does not exist")


def test_help_of_train_is_short_or_whole_and_fits_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    short, whole = run("train", "-h"), run("train", "--help")
    assert short[0] == whole[0] == 0 and run("train")[1] == short[1]
    keys = re.findall(r"^  --(\S+)", short[1], re.MULTILINE)
    assert len(keys) == 10 and {"model", "data.path", "optimizer.lr", "resume"} <= set(keys)
    assert len(re.findall(r"^  --\S+", whole[1], re.MULTILINE)) > 70
    for text in (short[1], whole[1]):
        assert max(map(len, text.splitlines())) <= 80
        assert "example: mmchat train " in text and "--ranks N: " in text
        assert not re.search(r"\b(int|float|bool|str)\b|default: None", text)
