"""The site builds without a warning, has a page for everything, and needs no network."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmchat.cli.main import build_commands
from mmchat.settings import describe
from mmchat.training.config import RunConfig
from tests.launching import ROOT

LONGEST_BUILD = 240


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material", reason='needs mkdocs-material: pip install "mmchat[docs]"')
    pytest.importorskip("mkdocstrings", reason='needs mkdocstrings: pip install "mmchat[docs]"')
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONGEST_BUILD)
    assert done.returncode == 0, done.stderr
    return out


def body(site: Path, page: str) -> str:
    """Text of a page, without markup."""
    markup = (site / page / "index.html").read_text(encoding="utf-8")
    article = markup[markup.index("<article") : markup.index("</article>")]
    return html.unescape(re.sub(r"<[^>]+>", "", article))


def test_no_page_loads_anything_from_another_host(site):
    loads = re.compile(
        r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href|srcset)=["']?(?:https?:)?//[^"'\s>]+"""
    )
    found = [match for page in site.rglob("*.html") for match in loads.findall(page.read_text(encoding="utf-8"))]
    styles = [style for style in site.rglob("*.css") if re.search(r"url\(['\"]?(https?:)?//", style.read_text())]
    assert not found and not styles


def test_every_command_and_option_is_in_the_reference(site):
    text = body(site, "reference/cli")
    parsers = build_commands()
    assert len(parsers) > 20
    for name, parser in parsers.items():
        assert f"mmchat {name}" in text
        options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        assert not [option for option in options if option not in text and option != "--help"]


def test_every_config_key_is_in_the_reference(site):
    text = body(site, "reference/config")
    keys = [".".join(key.path) for key in describe(RunConfig)]
    assert len(keys) > 80
    assert not [key for key in keys if key not in text]


def test_every_public_name_is_in_the_reference(site):
    text = body(site, "reference/api")
    for name in (
        *("MMChatConfig", "MMChatForConditionalGeneration", "MMChatProcessor", "conversation.render"),
        *("vision.load_tower", "contrastive.load_clip", "conversion.import_model", "inference.Generator"),
        *("data.sources.open_source", "images.load_image", "images.find_images"),
    ):
        assert f"mmchat.{name}" in text


def test_every_design_note_is_on_the_index(site):
    notes = {path.stem for path in (ROOT / "docs" / "design").glob("*.md")} - {"index"}
    linked = set(re.findall(r"\]\(([\w-]+)\.md", (ROOT / "docs" / "design" / "index.md").read_text()))
    assert notes and notes == linked


def test_search_finds_a_page(site):
    index = json.loads((site / "search" / "search_index.json").read_text())
    assert any(entry["location"].startswith("guides/packing/") for entry in index["docs"])


def test_the_glossary_has_twelve_words():
    text = (ROOT / "docs" / "reference" / "glossary.md").read_text()
    assert len(re.findall(r"^:   ", text, re.MULTILINE)) == 12
