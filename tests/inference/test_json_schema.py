"""Answers that fit a JSON schema, whatever the model would say."""

import json
import sys

import pytest

from mmchat.errors import UserError
from mmchat.inference import Generator

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "left": {"type": "boolean"},
    },
    "required": ["colour", "count", "left"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def generator(assistant_dir):
    with Generator(assistant_dir, device="cpu") as generator:
        yield generator


def asked(generator, seed, **options):
    return generator.submit(*generator.conversation("What is this?", (), ()), seed=seed, temperature=2.0, **options)


def test_random_answers_fit_the_schema_and_end(generator):
    answers = [asked(generator, seed, json_schema=SCHEMA, max_new_tokens=80) for seed in range(12)]
    plain = asked(generator, 0, max_new_tokens=12)
    found = [json.loads(answer.result().text) for answer in answers]
    assert {answer.result().reason for answer in answers} == {"end"}
    for one in found:
        assert list(one) == ["colour", "count", "left"]
        assert one["colour"] in ("red", "green") and one["count"] in range(100) and one["left"] in (True, False)
    assert len({str(one) for one in found}) > 6
    assert plain.result().text == asked(generator, 0, max_new_tokens=12).result().text


def test_an_answer_cut_at_its_length_says_so(generator):
    answer = asked(generator, 0, json_schema=SCHEMA, max_new_tokens=4).result()
    assert answer.reason == "length" and answer.text.startswith("{")


@pytest.mark.parametrize("schema", [{"type": "number of things"}, {"$ref": "http://example.com/a.json"}])
def test_a_schema_that_cannot_be_used_is_refused(generator, schema):
    with pytest.raises(UserError, match="the JSON schema cannot be used: "):
        asked(generator, 0, json_schema=schema)


def test_without_the_package_its_extra_is_named(assistant_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with Generator(assistant_dir, device="cpu") as generator, pytest.raises(UserError, match=r"mmchat\[json\]"):
        asked(generator, 0, json_schema=SCHEMA)
