"""Typed text stays text: slots, labels and the saved Jinja are correct for random conversations.

The text is drawn from what could confuse a tokenizer: every added token of the four tokenizers, what the templates
write, parts of both, white space, multi-byte characters, the image placeholder and transformers' marks.
"""

import json
import os
import re
from copy import copy
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation import TEMPLATES, SlotTokens, encode_prompt, merge_text_parts, render, to_jinja
from mmchat.errors import UserError
from tests.conversation.conftest import GENERATION_JINJA, NAMES, PLAIN_JINJA, TOKENIZERS, WRITTEN

OWN = {
    added["content"]
    for name in NAMES
    for added in json.loads((Path(TOKENIZERS) / name / "tokenizer.json").read_text())["added_tokens"]
}
TOKENS = sorted(OWN | {*WRITTEN, "<plain-added>", "<|lone|>"})
PIECES = [
    *TOKENS,
    *(token[:3] for token in TOKENS),
    *(token[3:] for token in TOKENS),
    *("<image>", "USER:", "ASSISTANT:", "[INST]", "###", "<tool_response>", "{{ x }}", "{% if %}", "\\n", "'", '"'),
    *(" ", "  ", "\n", "\n\n", "\t", "\u00a0", "\u2581", "\x1c", "\U000f0000", "\U000f0001"),
    *("Hello", "a", " the", "1.", "é", "中文", "😀", "👨\u200d👩\u200d👧", "e\u0301"),
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
TEXT_PART = TEXT.map(lambda text: {"type": "text", "text": text})
IMAGE_PART = st.just({"type": "image"})
SLOTS = st.sampled_from([SlotTokens("<imgpad>", "<img>", "</img>"), SlotTokens("<imgpad>")])
EXAMPLES = settings(max_examples=int(os.environ.get("EXAMPLES", "10")), deadline=None)

JINJAS = {"auto": PLAIN_JINJA, "auto with generation blocks": GENERATION_JINJA}
KEYS = [*(key for key in TEMPLATES if key != "auto"), *JINJAS]
# llama_2 writes BOS between the rounds, which the Qwen tokenizer has not.
PAIRS = [(name, key) for name in NAMES for key in KEYS if (name, key) != ("qwen_like", "llama_2")]
each_pair = pytest.mark.parametrize(("name", "key"), PAIRS)


def choose(tokenizers, name, key):
    """The tokenizer, with its chat template for `auto`, and the template."""
    tokenizer = tokenizers[name]
    if key in JINJAS and tokenizer.chat_template != JINJAS[key]:
        tokenizer = _copies.setdefault(name, copy(tokenizer))
        tokenizer.chat_template = JINJAS[key]
    return tokenizer, TEMPLATES[key.split()[0]]


_copies = {}


@st.composite
def chats(draw, template):
    """A chat that the template supports. It ends with an answer, and at least one answer is supervised."""
    messages = []
    if (template.system or template.from_tokenizer) and draw(st.booleans()):
        messages.append({"role": "system", "content": draw(TEXT)})
    for _ in range(1 if template.one_exchange else draw(st.integers(1, 3))):
        content = draw(st.one_of(TEXT, st.lists(st.one_of(TEXT_PART, IMAGE_PART), max_size=4)))
        if template.one_exchange:
            content = [{"type": "image"}, *parts_of({"content": content})]
        messages += [{"role": "user", "content": content}, draw(answers())]
        if template.tool or template.from_tokenizer:
            for _ in range(draw(st.integers(0, 2))):
                messages += [{"role": "tool", "content": draw(TEXT)} for _ in range(draw(st.integers(1, 2)))]
                messages.append(draw(answers()))
    assume(any(is_trained(message) for message in messages))
    return messages


@st.composite
def answers(draw):
    flags = draw(st.sampled_from([{}, {}, {"train": True}, {"train": False}, {"weight": 0}]))
    return {"role": "assistant", "content": draw(st.one_of(TEXT, st.lists(TEXT_PART, max_size=2))), **flags}


def is_trained(message):
    return message["role"] == "assistant" and message.get("train", message.get("weight", 1))


def parts_of(message):
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def text_of(message):
    return "".join(part.get("text", "") for part in parts_of(message))


def count_images(messages):
    return sum(part["type"] == "image" for message in messages for part in parts_of(message))


def harmless(message):
    """The same message with text that spells no token. An empty message stays empty."""
    parts = [{**part, "text": unmarked(part["text"]) and "x"} if "text" in part else part for part in parts_of(message)]
    return {**message, "content": parts}


def unmarked(text):
    """The text without transformers' marks, which are dropped from input."""
    return re.sub("[\U000f0000\U000f0001]", "", text)


def visible(text):
    """The text without white space, and without "▁", which is white space for a Llama tokenizer."""
    return re.sub(r"[\s\u2581\x1c]", "", unmarked(text))


def expected_labels(messages, key, template, eos):
    """The supervised text, computed from the messages: the answers and their ends."""
    before, after = {"auto": ("", "<|im_end|>"), "auto with generation blocks": ("", eos)}.get(key, template.answer)
    said = "".join(before + text_of(message) + after for message in messages if is_trained(message))
    return (said + template.end * bool(is_trained(messages[-1]))).replace("{eos}", eos)


@each_pair
@EXAMPLES
@given(data=st.data())
def test_typed_tokens_are_text(tokenizers, name, key, data):
    tokenizer, template = choose(tokenizers, name, key)
    messages = data.draw(chats(template))
    slots = data.draw(SLOTS)
    images = count_images(messages)
    counts = data.draw(st.lists(st.integers(1, 5), min_size=images, max_size=images))
    rendered = render_or_discard(messages, template, tokenizer, counts, slots=slots)
    ids, labels = rendered.input_ids, rendered.labels

    pad = tokenizer.convert_tokens_to_ids(slots.pad)
    assert ids.count(pad) == sum(counts)
    assert [stop - start for start, stop in rendered.image_spans] == counts
    assert all(set(ids[start:stop]) == {pad} for start, stop in rendered.image_spans)

    # All added tokens, slots and template, are those of the same conversation with harmless words.
    added = set(tokenizer.get_added_vocab().values())
    reference = render([harmless(message) for message in messages], template, tokenizer, counts, slots=slots)
    assert [i for i in ids if i in added] == [i for i in reference.input_ids if i in added]
    assert [i for i in labels if i in added] == [i for i in reference.labels if i in added]

    # What is supervised reads as the answers and their ends, nothing else.
    assert all(label in (id_, IGNORE_INDEX) for id_, label in zip(ids, labels, strict=True))
    said = tokenizer.decode([i for i in labels if i != IGNORE_INDEX])
    assert visible(said) == visible(expected_labels(messages, key, template, tokenizer.eos_token))


@each_pair
@EXAMPLES
@given(data=st.data())
def test_jinja_gives_the_ids_of_render(tokenizers, name, key, data):
    tokenizer, template = choose(tokenizers, name, key)
    messages = data.draw(chats(template))
    system = data.draw(st.one_of(st.none(), TEXT)) if template.system or template.from_tokenizer else None
    generate = data.draw(st.booleans())
    messages = messages[:-1] if generate else messages
    slots = data.draw(SLOTS)
    jinja = to_jinja(template, slots, tokenizer, system)
    how = {"slots": slots, "system": system, "add_generation_prompt": generate}
    expected = render_or_discard(messages, template, tokenizer, 3, **how).input_ids

    def write(chat):
        return tokenizer.apply_chat_template(chat, chat_template=jinja, tokenize=False, add_generation_prompt=generate)

    # What apply_chat_template(tokenize=True, sanitize_control_tokens=True) does to the messages.
    conversations = [merge_text_parts(messages)]
    (marked,), *_ = tokenizer._mark_chat_inputs(jinja, conversations, None, None, {}, True, False)
    assert encode_prompt(write(marked), tokenizer, slots, 3, sanitize_control_tokens=True) == expected

    words = [text_of(message) for message in messages]
    if not any(token in text for text in words for token in [*TOKENS, "\U000f0000", "\U000f0001"]):
        text = write(messages)
        assert encode_prompt(text, tokenizer, slots, 3) == expected
        # Text alone needs nothing of ours, but a Llama tokenizer leaves out the "▁" behind a written BOS.
        clean = "\U000f0000" not in text
        if clean and not count_images(messages) and name != "llama_like_legacy_false":
            assert tokenizer(text, add_special_tokens=False).input_ids == expected


@each_pair
@EXAMPLES
@given(data=st.data())
def test_truncation_removes_the_end(tokenizers, name, key, data):
    tokenizer, template = choose(tokenizers, name, key)
    messages = data.draw(chats(template))
    slots = data.draw(SLOTS)
    whole = render_or_discard(messages, template, tokenizer, 3, slots=slots)
    max_length = data.draw(st.integers(0, len(whole.input_ids) + 1))
    kept = max(max_length - (template.end_when_cut and max_length < len(whole.input_ids)), 0)
    last = whole.image_spans[-1][1] + (slots.end is not None) if whole.image_spans else 0
    try:
        cut = render(messages, template, tokenizer, 3, slots=slots, max_length=max_length)
    except UserError as error:
        cuts_image = last > kept
        assert ("would cut an image" in str(error)) == cuts_image
        assert cuts_image or set(whole.labels[:kept]) <= {IGNORE_INDEX}
        return
    assert last <= kept and cut.image_spans == whole.image_spans
    assert (cut.input_ids[:kept], cut.labels[:kept]) == (whole.input_ids[:kept], whole.labels[:kept])
    assert len(cut.input_ids) == len(cut.labels) == min(max_length, len(whole.input_ids))
    assert cut.cut == len(whole.input_ids) - len(cut.input_ids)


def render_or_discard(messages, template, tokenizer, *args, **kwargs):
    """`render`, but discard examples with nothing to learn.

    An answer of marks or white space can share its only token with the template's text.
    """
    try:
        return render(messages, template, tokenizer, *args, **kwargs)
    except UserError as error:
        assert "nothing to learn" in str(error)
        assume(False)
