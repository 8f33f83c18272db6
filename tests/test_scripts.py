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


def test_a_shell_may_source_the_environment_alone(tmp_path):
    """Its virtual environment is then in the repository, not at the root of the file system."""
    environment = ROOT / "scripts" / "environment.sh"
    command = f"unset ROOT; . {environment}; echo $ROOT; ROOT=/elsewhere; . {environment}; echo $ROOT"
    done = subprocess.run(["bash", "-eu", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{ROOT}\n/elsewhere\n", "")
