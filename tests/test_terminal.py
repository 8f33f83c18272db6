"""Names may hold brackets: nothing that is printed is markup."""

import ast
import io

import pytest
from rich.table import Table

from mmchat.progress import progress_bar
from mmchat.terminal import PlainConsole
from tests.test_layers import ROOT

NAME = "r[/b]x [bold]:warning:"


def test_names_are_printed_as_they_are():
    console = PlainConsole(file=io.StringIO(), width=100)
    table = Table(NAME, title=NAME)
    table.add_row(NAME)
    console.print(NAME, style="yellow")
    console.print(table)
    assert console.file.getvalue().count(NAME) == 4


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_shows_any_name(monkeypatch, capsys, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    with progress_bar(NAME, 2) as bar:
        bar.advance(note="[/i]")
    assert NAME in capsys.readouterr().err


def test_no_module_makes_another_console():
    made = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "mmchat").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console"
    ]
    assert made == []
