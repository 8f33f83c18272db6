"""Saved conversations, LLaVA's JSON, shared pages and feedback, each read back by what will read it."""

import base64
import io
import json
import zipfile

import pytest
from test_demo_limits import png
from web_chat.conversation import Conversation
from web_chat.feedback import Feedback
from web_chat.limits import Limits, admit
from web_chat.saving import from_json, to_html, to_json, to_llava

from mmchat.cli.main import main
from mmchat.data.sources import open_source
from mmchat.errors import UserError


@pytest.fixture
def talk():
    conversation = Conversation(system="Be <short>.")
    red, blue = (admit(f"{color}.png", png(color=color), [], Limits()) for color in ("red", "blue"))
    for question, images, answer, state in (
        ("Which colours?", [red, blue], "red & <blue>", "done"),
        ("Broken?", [], "no", "failed"),
        ("And again?", [red], "red", "done"),
    ):
        turn = conversation.ask(question, images)
        turn.answer, turn.state, turn.model = answer, state, "a"
    return conversation


def test_a_saved_conversation_is_the_same(talk):
    talk.turns[0].rating, talk.turns[0].given = "corrected", "green"
    other = Conversation()
    other.ask("unanswered")
    text = to_json([("a", talk), ("b", other)])
    (name, again), (second, empty) = from_json(text, Limits())
    assert (name, again, second, empty.turns) == ("a", talk, "b", [])
    assert len(json.loads(text)["images"]) == 2  # the red one once
    with pytest.raises(UserError, match=r"^3 images are more than the limit of 2"):
        from_json(text, Limits(images=2))


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", '{"format": "mmchat conversation 1"}'])
def test_other_files_are_refused(text):
    with pytest.raises(UserError, match="no saved conversation"):
        from_json(text, Limits())


def test_a_tampered_file_is_refused(talk):
    value = json.loads(to_json([("a", talk)]))
    for change in (
        lambda v: v["sides"][0]["turns"][0].update(images=["none"]),
        lambda v: v["images"].update({"0-red.png": "!"}),
        lambda v: v["images"].update({"0-red.png": base64.b64encode(b"no image").decode()}),
        lambda v: v["sides"][0]["turns"][0].update(question="x" * 30_000),
        lambda v: v.update(sides=3),
    ):
        changed = json.loads(json.dumps(value))
        change(changed)
        with pytest.raises(UserError):
            from_json(json.dumps(changed), Limits())


def test_llava_json_is_read_by_our_sources(talk, tmp_path):
    with zipfile.ZipFile(io.BytesIO(to_llava(talk))) as archive:
        archive.extractall(tmp_path)
    (record,) = open_source(tmp_path / "conversation.json", tmp_path)
    assert [turn.role for turn in record.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert record.answers == ["red & <blue>", "red"]
    assert [ref.open().getpixel((0, 0)) for ref in record.images] == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


def test_what_llavas_json_cannot_hold_is_refused(talk):
    talk.turns[0].question = "What is <image>?"
    with pytest.raises(UserError, match="question 1 holds the text <image>"):
        to_llava(talk)
    with pytest.raises(UserError, match="no answer to export"):
        to_llava(Conversation())


def test_a_shared_page_holds_its_images_and_no_markup_of_visitors(talk):
    talk.turns[0].question = "<script>alert(1)</script>"
    page = to_html([("a<b>", talk)])
    assert "<script" not in page and "&lt;script&gt;" in page and "a&lt;b&gt;" in page
    assert page.count('src="data:image/png') == 3 and "http" not in page.replace("data:image", "")


def test_feedback_is_data_for_training(talk, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the check writes its report
    feedback = Feedback(tmp_path)
    talk.turns[2].rating = "up"
    feedback.put(talk, 2)
    other = talk.copy()
    other.turns[2].answer, other.turns[2].given, other.turns[2].rating = "scarlet", "red", "corrected"
    other.turns[2].model = "b"
    feedback.put(other, 2)
    talk.turns[0].rating = "down"
    feedback.put(talk, 0)

    good = list(open_source(tmp_path / "feedback.jsonl", tmp_path))
    assert [record.extra["rating"] for record in good] == ["up", "corrected"]
    assert [[turn.train for turn in record.turns if turn.role == "assistant"] for record in good] == [[False, True]] * 2
    assert good[1].answers[-1] == "scarlet" and good[1].extra["corrected_from"] == "red"
    assert len(good[0].images) == 3 and len(list((tmp_path / "images").iterdir())) == 2
    (bad,) = open_source(tmp_path / "rejected.jsonl", tmp_path)
    assert bad.extra["rating"] == "down"
    assert main(["data", "check", str(tmp_path / "feedback.jsonl"), "--image-root", str(tmp_path)]) == 0
    assert "2" in capsys.readouterr().out


def test_a_later_rating_replaces_an_earlier_one(talk, tmp_path):
    feedback = Feedback(tmp_path)
    for rating in ("up", "down", "", "up", "up"):
        talk.turns[0].rating = rating
        feedback.put(talk, 0)
    assert len((tmp_path / "feedback.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "rejected.jsonl").read_text() == ""
    del talk.turns[1:]
    other = talk.copy()
    other.turns[0].model = "b"
    feedback.prefer(other, talk)
    assert json.loads((tmp_path / "feedback.jsonl").read_text())["model"] == "b"
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["model"] == "a"
