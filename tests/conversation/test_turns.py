"""Messages and the turns parsed from them render alike, and turns are written back without loss."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.conversation import parse_messages, render
from mmchat.conversation.messages import to_messages
from mmchat.errors import UserError
from tests.conversation.test_render_properties import EXAMPLES, SLOTS, TEXT, chats, choose, count_images, each_pair

SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


def to_data(message):
    """The message in LLaVA's dialect. Typed `<image>` becomes a placeholder there."""
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    value = "".join("<image>" if part["type"] == "image" else part["text"] for part in parts)
    marks = {key: message[key] for key in ("train", "weight") if key in message}
    return {"from": SPEAKERS[message["role"]], "value": value, **marks}


@st.composite
def conversations(draw, template):
    """A conversation of either dialect; in LLaVA's, an unprompted answer may come first."""
    messages = draw(chats(template))
    if draw(st.booleans()):
        return messages
    messages = [to_data(message) for message in messages]
    if not template.one_exchange and draw(st.booleans()):
        start = 1 if messages[0]["from"] == "system" else 0
        messages.insert(start, {"from": "gpt", "value": draw(TEXT)})
    return messages


def outcome(conversation, *arguments, **options):
    """What `render` returns, or its error message."""
    try:
        return render(conversation, *arguments, **options)
    except UserError as error:
        return str(error)


@each_pair
@EXAMPLES
@given(data=st.data())
def test_turns_render_as_their_messages(tokenizers, name, key, data):
    tokenizer, template = choose(tokenizers, name, key)
    messages = data.draw(conversations(template))
    turns = parse_messages(messages)
    images = sum(turn.parts.count(None) for turn in turns)
    if "role" in messages[0]:
        assert images == count_images(messages)
    options = {"slots": data.draw(SLOTS), "add_generation_prompt": data.draw(st.booleans())}
    expected = outcome(messages, template, tokenizer, [3] * images, **options)
    assert outcome(turns, template, tokenizer, [3] * images, **options) == expected
    assert outcome(tuple(turns), template, tokenizer, [3] * images, **options) == expected
    assert turns == parse_messages(messages)  # render changes nothing in them

    dialect = "data" if "from" in messages[0] else "chat"
    assert parse_messages(to_messages(turns, dialect)) == turns


@pytest.mark.parametrize("system", [[], [{"from": "system", "value": "s"}]])
def test_only_an_opening_answer_of_the_data_dialect_is_unprompted(system):
    messages = [*system, *({"from": who, "value": "a"} for who in ("gpt", "human", "gpt", "gpt"))]
    turns = parse_messages(messages)[len(system) :]
    assert [turn.unprompted for turn in turns] == [True, False, False, False]
    assert not any(turn.unprompted for turn in parse_messages(messages[len(system) + 1 :]))
    chat = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    assert not any(turn.unprompted for turn in parse_messages(chat))
