"""`kinds` and `without_kinds` of a source: which exchanges are kept, and where the image goes."""

import json

import pytest

from mmchat.data.config import DataConfig
from mmchat.data.exchange_kinds import keep_kinds
from mmchat.data.lengths import LengthMeasure, source_lengths, source_measure
from mmchat.data.mixture import open_mixture
from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Record, parse_record, stored_form
from mmchat.errors import UserError


def conversation(kinds, images=1, **more):
    turns = [{"from": "system", "value": "Be brief."}]
    for number, kind in enumerate(kinds):
        marks = "<image>\n" * images if number == 0 else ""
        turns += [{"from": "human", "value": f"{marks}a {kind}?"}, {"from": "gpt", "value": f"the {kind}"}]
    return {"id": "-".join(kinds), "image": ["a.png"] * images, "conversations": turns, "kinds": list(kinds), **more}


def read(item, folder) -> Record:
    for name in item["image"]:
        (folder / name).touch()
    return parse_record(item, "here:0", folder)


def said(record):
    return [(turn["from"], turn["value"]) for turn in stored_form(record)["conversations"]]


def test_the_image_goes_to_the_first_question_that_is_kept(tmp_path):
    record = read(conversation(["colour", "count", "place"]), tmp_path)
    kept = keep_kinds(record, None, ["colour"])
    assert said(kept) == [
        ("system", "Be brief."),
        ("human", "<image>\na count?"),
        ("gpt", "the count"),
        ("human", "a place?"),
        ("gpt", "the place"),
    ]
    assert kept.images == record.images
    assert said(keep_kinds(record, ["place"], None))[1:] == [("human", "<image>\na place?"), ("gpt", "the place")]
    assert said(keep_kinds(record, ["colour"], None))[1:] == [("human", "<image>\na colour?"), ("gpt", "the colour")]
    assert keep_kinds(record, ["colour", "count", "place"], None) is record
    assert keep_kinds(record, ["other"], None) is None
    assert keep_kinds(record, ["place"], ["place"]) is None


def test_several_images_are_written_as_the_data_dialect_writes_them(tmp_path):
    record = read(conversation(["colour", "count"], images=2), tmp_path)
    expected = read(conversation(["count"], images=2), tmp_path)
    assert said(keep_kinds(record, ["count"], None)) == said(expected)


def test_images_of_questions_after_the_last_one_kept_are_left_out(tmp_path):
    item = conversation(["colour", "count"])
    item["image"] = ["a.png", "b.png"]
    item["conversations"][3]["value"] = "<image>\na count?"
    record = read(item, tmp_path)
    assert keep_kinds(record, ["colour"], None).images == record.images[:1]
    assert len(keep_kinds(record, ["count"], None).images) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": None}, "here:0: the source keeps exchanges by kind, but the record has no `kinds`"),
        ({"kinds": ["colour"]}, "here:0: 2 answers and 1 kinds; expected as many"),
    ],
)
def test_records_without_a_kind_for_each_answer(tmp_path, change, message):
    record = read(conversation(["colour", "count"]) | change, tmp_path)
    with pytest.raises(UserError, match=message):
        keep_kinds(record, ["colour"], None)


def mixture(folder, **keys):
    items = [conversation(kinds) for kinds in (["colour"], ["colour", "count"], ["count"], ["place", "colour"])]
    (folder / "a.png").touch()
    (folder / "records.json").write_text(json.dumps(items))
    config = DataConfig(path=str(folder / "records.json"), **keys)
    return open_mixture(config, Quarantine(folder / "quarantine.jsonl", "stop"))


def test_a_source_has_the_records_with_an_exchange_left(tmp_path):
    chosen = mixture(tmp_path, without_kinds=["colour"])
    found = [chosen.find(number)[1] for number in range(len(chosen))]
    assert [record.id for record in found] == ["colour-count", "count", "place-colour"]
    assert [record.answers for record in found] == [["the count"], ["the count"], ["the place"]]
    assert len(mixture(tmp_path, kinds=["place"])) == 1
    assert len(mixture(tmp_path, kinds=["count"], max_samples=1)) == 1
    assert not (tmp_path / "quarantine.jsonl").exists()


def test_a_kind_that_does_not_occur_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match=r"has no exchange of kind 'color'; its kinds are: colour, count, place"):
        mixture(tmp_path, without_kinds=["color"])


def test_lengths_are_those_of_what_is_kept(tmp_path, make_assistant):
    _, processor = make_assistant()
    whole, chosen = mixture(tmp_path), mixture(tmp_path, kinds=["count"])
    tokens: dict[str, list[int]] = {}
    for name, one in (("whole", whole), ("chosen", chosen)):
        source = one.sources[0]
        measure = source_measure(source, processor, None)
        tokens[name] = source_lengths(source, measure).tokens.tolist()
    # In both it is the only exchange, so lengths are equal, and that of the record with one is as in the whole.
    assert len(set(tokens["chosen"])) == 1 and tokens["chosen"][1] == tokens["whole"][2]
    keys = {LengthMeasure(processor, kinds=kinds).key() for kinds in (None, ["a"], ["b"])}
    assert len(keys) == 3
