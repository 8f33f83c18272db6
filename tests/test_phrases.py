"""The phrases that CONTRIBUTING.md rules out stand in no file of the project."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = "CONTRIBUTING.md"
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".sh", ".jinja"}
GAP = r"(?:[ \t]+|[ \t]*\n[ \t]*(?:[#>*][ \t]*)?)"
"""Between two words of a phrase: blanks, or one line break with the sign of a comment or quotation after it."""


def read_table(text: str) -> dict[str, str]:
    """Phrase -> what to write instead, from the section's rows "| `phrase` | `replacement` |"."""
    section = re.search(r"^#+ Phrases we do not write\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    return dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", section[1], re.MULTILINE))


PHRASES = read_table((ROOT / TABLE).read_text(encoding="utf-8"))


def found_in(text: str, name: str) -> list[str]:
    """`name:line: ...` for each phrase in the text, as whole words in any case."""
    found = []
    for phrase, replacement in PHRASES.items():
        words = GAP.join(map(re.escape, phrase.split()))
        for match in re.finditer(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            found.append((line, f"{name}:{line}: {phrase!r}; write: {replacement}"))
    return [message for _, message in sorted(found)]


def tracked_files() -> list[str]:
    """Paths relative to the root; what git tracks but the working tree lacks is left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [
        name
        for name in listed.split("\0")
        if Path(name).suffix in SUFFIXES
        and name != TABLE
        and not name.startswith("tests/fixtures/")
        and (ROOT / name).is_file()
    ]


def test_the_table_holds_a_dozen():
    assert len(PHRASES) == 12


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the tracked files are known only in a git checkout")
def test_no_file_has_a_ruled_out_phrase():
    names = tracked_files()
    assert len(names) > 100
    found = [message for name in names for message in found_in((ROOT / name).read_text(encoding="utf-8"), name)]
    assert not found, f"{len(found)} phrases to rewrite:\n" + "\n".join(found)


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_planted_phrase_is_found(phrase):
    for text in (phrase, phrase.upper(), f"({phrase})", f"'{phrase}.'", phrase.replace(" ", "\n    # ", 1)):
        assert found_in(f"x = 1\n# {text}\n", "a.py") == [f"a.py:2: {phrase!r}; write: {PHRASES[phrase]}"]


@pytest.mark.parametrize("phrase", PHRASES)
def test_parts_of_words_are_not(phrase):
    for text in (f"x{phrase}", f"{phrase}x", f"_{phrase}_"):
        assert not found_in(text, "a.md")


def test_words_of_two_paragraphs_are_not():
    texts = [phrase.replace(" ", "\n\n") for phrase in PHRASES if " " in phrase]
    assert texts and not any(found_in(text, "a.md") for text in texts)
