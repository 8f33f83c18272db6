"""bench/page_generation.py runs and reports the stages of page generation."""

import sys

import page_generation
import pytest


@pytest.mark.slow
def test_a_small_measurement(tmp_path, monkeypatch, capsys):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("\n\n".join(f"The lamp burned low on evening {n}." for n in range(400)))
    words = [
        "page_generation.py",
        "--pages",
        "4",
        "--text",
        str(tmp_path / "text"),
        "--out",
        str(tmp_path / "pages.json"),
    ]
    monkeypatch.setattr(sys, "argv", words)
    page_generation.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("dense: ") and said[1].startswith("usual: ") and "draw" in said[1]
