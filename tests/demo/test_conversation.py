"""Conversations and visitors: what the model reads, after undo, edits, failures and comparisons."""

import pytest
from web_chat.conversation import Conversation
from web_chat.visitors import Side, Visitor, Visitors


def said(turn, answer, state="done"):
    turn.answer, turn.state = answer, state


@pytest.fixture
def talk():
    conversation = Conversation()
    said(conversation.ask("first", ["a", "b"]), "one ")
    said(conversation.ask("broken", ["c"]), "UserError", "failed")
    said(conversation.ask("second"), "two")
    conversation.ask("third", ["d"])
    return conversation


def texts(messages):
    return [m["content"] if isinstance(m["content"], str) else m["content"][-1]["text"] for m in messages]


def test_the_model_reads_everything_but_failures(talk):
    messages, images = talk.messages()
    assert texts(messages) == ["first", "one", "second", "two", "third"]
    assert images == ["a", "b", "d"] and talk.images == images
    assert [part["type"] for part in messages[0]["content"]] == ["image", "image", "text"]
    assert texts(talk.messages(1)[0]) == ["first"]
    assert texts(talk.messages(2)[0]) == ["first", "one", "broken"]  # asked again, it is read

    talk.system = "Be short."
    assert talk.messages()[0][0] == {"role": "system", "content": "Be short."}


def test_asking_again_forgets_what_came_after(talk):
    turn = talk.ask_again(0, "edited")
    assert [one.question for one in talk.turns] == ["edited"]
    assert (turn.images, turn.state, turn.answer) == (("a", "b"), "asked", "")
    talk.turns[0].answer = "x"
    assert talk.ask_again(0).question == "edited" and talk.turns[0].answer == ""


def test_undo(talk):
    assert talk.undo().question == "third"
    assert Conversation().undo() is None


def test_a_comparison_continues_the_same_conversation(talk):
    visitor = Visitor([Side("a", talk)])
    talk.undo()
    visitor.compare("b")
    visitor.ask("both?", [])
    assert [side.conversation.turns[-1].question for side in visitor.sides] == ["both?"] * 2
    assert visitor.pending == {0, 1}
    said(visitor.sides[0].conversation.turns[-1], "A")
    assert visitor.sides[1].conversation.turns[-1].answer == ""  # not the same object
    visitor.pending.clear()
    visitor.ask_again(1, 3)
    assert visitor.pending == {1} and visitor.sides[0].conversation.turns[-1].answer == "A"
    visitor.ask_again(1, 0, "edited")
    assert [len(side.conversation.turns) for side in visitor.sides] == [1, 1] and visitor.pending == {0, 1}
    visitor.compare(None)
    assert len(visitor.sides) == 1


def test_a_visitor_that_leaves_stops_its_answers():
    cancelled = []
    handle = type("Handle", (), {"cancel": lambda self: cancelled.append(self)})()
    visitors = Visitors("a")
    visitor = visitors.get("session")
    assert visitors.get("session") is visitor and visitors.get("other") is not visitor
    visitor.running.add(handle)
    visitors.leave("session")
    assert cancelled == [handle] and visitor.stopped
    assert visitors.get("session") is not visitor


def test_visitors_that_were_away_are_forgotten(monkeypatch):
    visitors = Visitors("a")
    first = visitors.get("first")
    busy = visitors.get("busy")
    busy.pending.add(0)
    monkeypatch.setattr("web_chat.visitors.AWAY", 0.0)
    visitors.get("second")
    assert visitors.get("first") is not first
    assert visitors.get("busy") is busy
