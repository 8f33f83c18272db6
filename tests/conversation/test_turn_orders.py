"""The table of docs/guides/templates.md, "Orders of turns": a row is a case here, in both dialects."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation import Turn, parse_messages, render
from mmchat.errors import UserError

DOCS = Path(__file__).parents[2] / "docs" / "guides" / "templates.md"
NAMES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def turn(role, text="x", **flags):
    return {"role": role, "content": text, **flags}


S, U, A, T = turn("system", "s"), turn("user", "u"), turn("assistant", "a"), turn("tool", "t")
B = turn("assistant", "b")
IMAGE = turn("user", [{"type": "image"}])


class Refused(NamedTuple):
    match: str


class Case(NamedTuple):
    messages: list
    chat: str | Refused
    """The supervised text, or the error. `#` is the end of an answer."""
    data: str | Refused | None = None
    """The expectation for the data dialect, if it differs."""
    template: str = "qwen_2_5"
    how: dict = {}


CASES = {
    "two turns of one role": Case([U, U, A], Refused("turn 1 is the user's, expected the assistant's")),
    "the same in `vary_opt`": Case([U, U, A, A], "a\na\n[eos]", template="vary_opt"),
    "leading assistant turn": Case([A, U, B], Refused("turn 0 is the assistant's, expected the user's"), "b#"),
    "trailing user turn": Case([U, A, U], "a#"),
    "trailing tool turn": Case([U, A, T], "a#"),
    "empty answer": Case([U, turn("assistant", "")], "#"),
    "system message in front": Case([S, U, A], "a#"),
    "system message in the middle": Case([U, A, S, U, A], Refused("may only be the first")),
    "system message without a place": Case([S, U, A], Refused("no place for a system"), template="vary_opt"),
    "tool turn after an answer": Case([U, A, T, B], "a#b#"),
    "tool turn after a tool turn": Case([U, A, T, T, B], "a#b#"),
    "tool turn after a user turn": Case([U, T, A], Refused("turn 1 is the tool's, expected the assistant's")),
    "user turn after a tool turn": Case([U, A, T, U, B], Refused("turn 3 is the user's, expected the assistant's or")),
    "tool turn in a template without": Case(
        [U, A, T, B], Refused("'gemma' has no place for a tool.*chatml, llama_3, qwen_2,"), template="gemma"
    ),
    "answer with `train: false`": Case([U, {**A, "train": False}, U, B], "b#"),
    "answer with `weight: 0`": Case([U, {**A, "weight": 0}, U, {**B, "weight": 1}], "b#"),
    "last answer with `train: false`": Case([U, A, U, {**B, "train": False}], "a\n", template="vary_opt"),
    "all answers with `train: false`": Case([U, {**A, "train": False}], Refused("nothing to learn")),
    "`train: true` on another role": Case([{**U, "train": True}, A], Refused("only an assistant's message can be")),
    "`train: false` on another role": Case([{**U, "train": False}, A], "a#"),
    "no answer": Case([U], Refused("nothing to learn")),
    "no answer, as a prompt": Case([U], "", how={"add_generation_prompt": True}),
    "tool turn, as a prompt": Case([U, A, T], "a#", how={"add_generation_prompt": True}),
    "answer, as a prompt": Case([U, A], Refused("must follow a user turn"), how={"add_generation_prompt": True}),
    "cut within an answer": Case([U, turn("assistant", "aaaa bbbb")], "aaaa b", how={"max_length": -5}),
    "cut behind an answer": Case([U, A], "a", how={"max_length": -2}),
    "cut in `vary_opt`": Case([U, turn("assistant", "aaaa")], "aaa[eos]", template="vary_opt", how={"max_length": -2}),
    "cut before every answer": Case([U, A], Refused("nothing to learn.*within max_length"), how={"max_length": -3}),
    "cut within an image": Case([IMAGE, A], Refused("would cut an image"), how={"max_length": -10}),
    "cut prompt": Case([U], Refused("shorten it"), how={"max_length": -1, "add_generation_prompt": True}),
}


def to_data(message):
    content = message["content"] if isinstance(message["content"], str) else "<image>"
    flags = {key: message[key] for key in ("train", "weight") if key in message}
    return {"from": NAMES[message["role"]], "value": content, **flags}


@pytest.mark.parametrize("dialect", ["chat", "data"])
@pytest.mark.parametrize("name", CASES)
def test_order(neox, name, dialect):
    case = CASES[name]
    messages = case.messages if dialect == "chat" else [to_data(message) for message in case.messages]
    expected = case.chat if dialect == "chat" or case.data is None else case.data
    how = dict(case.how)
    if "max_length" in how:  # counted from the end of the whole
        generate = how.get("add_generation_prompt", False)
        whole = render(messages, case.template, neox, 2, add_generation_prompt=generate)
        how["max_length"] += len(whole.input_ids)
    if isinstance(expected, Refused):
        with pytest.raises(UserError, match=expected.match):
            render(messages, case.template, neox, 2, **how)
        return
    labels = render(messages, case.template, neox, 2, **how).labels
    learned = neox.decode([label for label in labels if label != IGNORE_INDEX])
    assert learned == expected.replace("#", "<|im_end|>").replace("[eos]", neox.eos_token)


def test_the_table_has_these_rows():
    table = DOCS.read_text().split("## Orders of turns")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[1:] == list(CASES)


def test_messages_are_parsed_without_torch():
    code = "import sys; import mmchat.conversation; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_both_dialects_give_the_same_turns():
    messages = [S, IMAGE, A, T, T, {**B, "train": False}, {**U, "train": None}]
    turns = parse_messages(messages)
    assert turns[1].parts == (None,)
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool", "tool", "assistant", "user"]
    assert [turn.train for turn in turns] == [False, False, True, False, False, False, False]
    assert [turn.text for turn in turns] == ["s", "", "a", "t", "t", "b", "u"]
    data = parse_messages([to_data(message) for message in messages])
    assert [(turn.role, turn.text, turn.train, turn.parts.count(None)) for turn in data] == [
        (turn.role, turn.text, turn.train, turn.parts.count(None)) for turn in turns
    ]
    for name in ("tool", "observation", "function_response"):
        assert parse_messages([{"from": name, "value": "<image>"}])[0] == Turn("tool", ("<image>",))
