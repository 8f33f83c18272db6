"""Examples have questions that their model can answer."""

import json

import pytest
from test_demo_limits import png
from web_chat.examples import EXAMPLES, read_examples
from web_chat.widgets import DESCRIBE


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "heldout"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.png").write_bytes(png())
    (folder / "a.txt").write_text("Written?\n")
    (folder / "notes.md").write_text("no image")
    return folder


def test_questions_come_from_texts_then_from_the_data(folder):
    asked = [{"image": f"heldout/{name}.png", "conversations": [{"from": "human", "value": f"<image>\nIs it {name}?"}]}
             for name in "ab"]  # fmt: skip
    (folder.parent / "heldout.json").write_text(json.dumps(asked))
    examples = read_examples(folder)
    assert [one["text"] for one in examples] == ["Written?", "Is it b?", DESCRIBE]
    assert examples[1]["files"] == [examples[1]["icon"]] == [str(folder / "b.png")]


@pytest.mark.parametrize("table", ["", "{", "[1]", '{"image": 1}', '[{"image": "heldout/b.png"}]', '[{"image": []}]'])
def test_another_file_next_to_the_folder_is_no_mistake(folder, table):
    (folder.parent / "heldout.json").write_text(table)
    assert [one["text"] for one in read_examples(folder)] == ["Written?", DESCRIBE, DESCRIBE]


def test_none_and_the_first_few(folder):
    assert read_examples(None) == []
    for number in range(EXAMPLES):
        (folder / f"d{number}.png").write_bytes(png())
    assert len(read_examples(folder)) == EXAMPLES
