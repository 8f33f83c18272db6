"""English text available on every machine: the documentation of Python and scikit-learn."""

import ast
import re
import sysconfig
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from pydoc_data.topics import topics

from mmchat.progress import track

_PARAGRAPH = re.compile(r"[A-Z][A-Za-z0-9 ,.;:'\"()\-/?!%]*[.:!?]")
_MIN_WORDS = 6
_SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"})


def paragraphs() -> list[str]:
    """Unique paragraphs of whole sentences: about 140,000 words, 8,000 different ones.

    Sources: the language reference that `help()` shows, scikit-learn's data set descriptions, and the docstrings of the
    standard library.
    """
    unique: dict[str, None] = {}
    for text in _texts():
        for block in re.split(r"\n\s*\n", text):
            words = block.split()
            paragraph = " ".join(words)
            if len(words) >= _MIN_WORDS and _PARAGRAPH.fullmatch(paragraph):
                unique[paragraph] = None
    return list(unique)


def _texts() -> Iterator[str]:
    yield from (topics[name] for name in sorted(topics))
    descriptions = (entry for entry in files("sklearn.datasets").joinpath("descr").iterdir())
    yield from (
        entry.read_text(encoding="utf-8")
        for entry in sorted(descriptions, key=lambda entry: entry.name)
        if entry.name.endswith(".rst")
    )
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted(path for path in library.rglob("*.py") if _SKIPPED.isdisjoint(path.relative_to(library).parts))
    for path in track(modules, "reading Python's docstrings"):
        yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # test files with invalid syntax, and templates
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
