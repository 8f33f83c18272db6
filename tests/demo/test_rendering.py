"""Text becomes Markdown in which HTML and image addresses have no meaning, and nothing else changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_chat.conversation import Conversation, Status
from web_chat.rendering import INVISIBLE, bubbles, from_markdown, status_html, to_markdown


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("a <b> & c", "a <|b> &| c"),
        ("&lt;", "&|lt;"),
        ("![x](http://y/z.png)", "!|[x](http://y/z.png)"),
        ("`<b>` and ``a ` <b>``", "`<b>` and ``a ` <b>``"),
        ("```html\n<b>\n```\n<i>", "```html\n<b>\n```\n<|i>"),
        ("text\n~~~\n<b>", "text\n~~~\n<b>"),  # still being written
        ("a ` <b>", "a ` <|b>"),
        ("$a < b$ costs", r"\(a \lt  b\) costs"),
        (r"\(a > b\) \[x < y\] $$1 < 2$$", r"\(a \gt  b\) \[x \lt  y\] $$1 \lt  2$$"),
        ("costs $5 and $6", "costs $5 and $6"),
    ],
)
def test_markdown(text, markdown):
    assert to_markdown(text) == markdown.replace("|", INVISIBLE)


def test_tables_and_emphasis_stay():
    assert to_markdown("**bold**\n\n| a | b |\n|---|---|") == "**bold**\n\n| a | b |\n|---|---|"


@given(st.text(alphabet="<>&!`$[]()~ab \n", max_size=60))
def test_no_tag_is_left_outside_of_code(text):
    markdown = to_markdown(text)
    if "$" not in text:
        assert from_markdown(markdown) == text
    if "`" not in text and "~" not in text:
        assert "<b" not in markdown and "![" not in markdown and "&a" not in markdown


def test_bubbles_of_turns():
    conversation = Conversation()
    first = conversation.ask("What?")
    assert [one[:2] for one in bubbles(conversation)] == [(0, "question")]
    first.answer, first.state = "<b>", "done"
    second = conversation.ask("And?")
    second.answer, second.state = "image <i> is broken", "failed"
    assert bubbles(conversation) == [
        (0, "question", "What?"),
        (0, "answer", f"<{INVISIBLE}b>"),
        (1, "question", "And?"),
        (1, "answer", f"⚠ image <{INVISIBLE}i> is broken"),
    ]


@pytest.mark.parametrize(
    ("changes", "expected", "absent"),
    [
        ({}, "context 412 of 2,048 (256 image slots)", "cut off"),
        ({"reason": "length"}, "cut off: at the limit of 20 tokens", "full"),
        ({"reason": "length", "context": 412}, "cut off: the context is full", "limit"),
        ({"reason": "cancelled"}, "stopped", "cut off"),
        ({"shared_tokens": 300}, "(256 image slots, 300 reused)", "cut off"),
        ({"slots": 0}, "context 412 of 2,048", "slots"),
    ],
)
def test_status(changes, expected, absent):
    values = {"reason": "end", "new_tokens": 12, "limit": 20, "seconds": 3.0, "first_seconds": 1.0}
    values |= {"prompt_tokens": 400, "slots": 256, "shared_tokens": 0, "context": 2048}
    status = Status(**{**values, **changes})
    line = status_html(status, "a<b")
    assert expected in line and absent not in line and "a&lt;b" in line
    assert "5.5 tokens/s" in line and "first after 1.00 s" in line
