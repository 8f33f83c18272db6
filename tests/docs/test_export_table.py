"""The tables of docs/exports.md are what the formats say today."""

import pytest

from mmchat.conversion.formats import TARGETS
from mmchat.conversion.formats.llava_hf import LlavaHF
from tests.launching import ROOT


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        import export_table
    return export_table


def test_the_page_is_up_to_date(script):
    assert script.page() == (ROOT / "docs" / "exports.md").read_text(encoding="utf-8"), "python docs/export_table.py"


def test_every_target_takes_some_shapes_and_refuses_others(script):
    head, _, *lines = script.PAGE.read_text(encoding="utf-8").partition(script.BEGIN)[2].strip().split("\n")
    names = [name.strip() for name in head.strip("|").split("|")]
    columns = zip(*(line.strip("|").split("|") for line in lines[: len(script.SHAPES)]), strict=True)
    said = {name: {cell.strip() for cell in column} for name, column in zip(names, columns, strict=True)}
    assert {target.name for target in TARGETS} < said.keys()
    assert all("-" in said[target.name] and len(said[target.name]) > 1 for target in TARGETS)


def test_a_cell_says_for_which_fit_and_with_which_option(script, monkeypatch):
    clip, *_ = script.SHAPES
    by_name = {target.name: script.cell(target, clip) for target in TARGETS}
    assert (by_name["llava-hf"], by_name["llava"]) == ("yes", "`--bare-slots`")
    assert (by_name["gguf"], by_name["internvl"]) == ("`--known-reader-bug`", "-")
    monkeypatch.setattr(
        LlavaHF,
        "refusals",
        lambda self, config, processor=None: ["no"] * ("pad" in str(config.towers[0]["preprocessing"])),
    )
    assert script.cell(LlavaHF(), clip) == "squash: yes, shortest-edge-crop: yes"
