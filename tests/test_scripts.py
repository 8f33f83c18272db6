"""The shell scripts parse, and reflowing has not joined or broken their lines."""

import itertools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "scripts").rglob("*.sh"))
EMBEDDED = re.compile(r"<<'PYTHON'.*?\n(.*?)^PYTHON$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_script_parses(path):
    parsed = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    # bash only warns about a here-document without an end.
    assert (parsed.returncode, parsed.stderr) == (0, "")
    for program in EMBEDDED.findall(path.read_text()):
        compile(program, path.name, "exec")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_commands_continue_only_at_a_backslash(path):
    lines = EMBEDDED.sub("", path.read_text()).splitlines()
    assert [line for line in lines if re.search(r"[^'\"]\\ ", line)] == []
    arguments = re.compile(r'\s+("\$\w+/|--\w+ "?\w*[^)]*$)')
    pairs = itertools.pairwise(lines)
    assert [line for before, line in pairs if arguments.match(line) and not before.endswith("\\")] == []


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ([], "bash scripts/quickstart.sh"),
        (["--fresh", "--seed", "3", "--compare"], "bash scripts/quickstart.sh --seed 3 --compare"),
    ],
)
def test_a_stopped_quickstart_says_how_to_resume(tmp_path, arguments, command):
    """Its first step is the environment; Ctrl-C there ends it with status 130."""
    (tmp_path / "scripts").mkdir()
    text = (ROOT / "scripts" / "quickstart.sh").read_text()
    (tmp_path / "scripts" / "quickstart.sh").write_text(text)
    environment = (ROOT / "scripts" / "environment.sh").read_text()
    (tmp_path / "scripts" / "environment.sh").write_text(f"{environment}\nprepare_environment() {{ return 130; }}\n")
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].endswith(f"resume with: {command}\x1b[0m")


def test_a_stopped_script_says_how_to_resume_and_a_failed_one_does_not(tmp_path):
    script = tmp_path / "one.sh"
    for status, lines in ((143, 1), (1, 0)):
        script.write_text(f"ROOT={ROOT}\n. {ROOT}/scripts/environment.sh\nbegin ''\nexit {status}\n")
        done = subprocess.run(["bash", "-eu", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.count(f"resume with: bash {script}") == lines


def test_a_shell_may_source_the_environment_alone(tmp_path):
    """Its virtual environment is then in the repository, not at the root of the file system."""
    environment = ROOT / "scripts" / "environment.sh"
    command = f"unset ROOT; . {environment}; echo $ROOT; ROOT=/elsewhere; . {environment}; echo $ROOT"
    done = subprocess.run(["bash", "-eu", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{ROOT}\n/elsewhere\n", "")
