"""Every record of docs/guides/data_layouts.md is read."""

import json
import re

import pytest

from mmchat.data.records import Record, read_record
from tests.launching import ROOT

PAGE = (ROOT / "docs" / "guides" / "data_layouts.md").read_text(encoding="utf-8")
RECORDS = re.findall(r"^\| ([^|]+) \| `(\{.+\})` \|$", PAGE, re.MULTILINE)


def stored(value):
    return b"abc" if value == "<bytes>" else value


@pytest.mark.parametrize(("project", "line"), RECORDS, ids=[project for project, _ in RECORDS])
def test_a_record_of_each_project(tmp_path, make_image, project, line):
    make_image().save(tmp_path / "a.png")
    record = read_record({key: stored(value) for key, value in json.loads(line).items()}, "page:1", tmp_path)
    assert isinstance(record, Record), record.reason
    texts = [(turn.role, turn.text) for turn in record.turns]
    assert [role for role, _ in texts if role != "system"] == ["user", "assistant"]
    assert texts[-1][1] in ("A", "7") and len(record.images) == sum(turn.parts.count(None) for turn in record.turns)


def test_the_page_lists_them():
    assert len(RECORDS) >= 24
