"""Code blocks of README.md and of the pages of the site."""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from tests.launching import ROOT

NOT_WALKED = ("docs/design/", "docs/lab_log.md")
"""Notes about the past: their commands need not work today."""
ILLUSTRATION = "<!-- illustration -->"


class Fence(NamedTuple):
    """A code block: its page relative to the repository, the line of its first line of code, its language."""

    page: str
    line: int
    language: str
    code: str
    is_illustration: bool

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if not page.relative_to(ROOT).as_posix().startswith(NOT_WALKED)]


def fences() -> list[Fence]:
    return [fence for page in pages() for fence in fences_of(page.read_text(encoding="utf-8"), name_of(page))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fences_of(text: str, page: str) -> list[Fence]:
    found: list[Fence] = []
    lines = text.split("\n")
    start = None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
            continue
        before = next((earlier for earlier in reversed(lines[:start]) if earlier.strip()), "")
        code = textwrap.dedent("\n".join(lines[start + 1 : number]))
        language = lines[start].strip().removeprefix("```")
        found.append(Fence(page, start + 2, language, code, before.strip() == ILLUSTRATION))
        start = None
    assert start is None, f"{page}: a code block is not closed"
    return found


def commands_of(code: str) -> list[str]:
    """Command lines of a bash block; a backslash continues a line."""
    joined = re.sub(r"\\\n\s*", " ", code)
    return [line.strip() for line in joined.split("\n") if line.strip() and not line.strip().startswith("#")]
