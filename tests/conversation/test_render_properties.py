"""Whatever people type, it stays text: slots, labels and the saved Jinja hold for random conversations.

The text is drawn from everything that is dangerous to a tokenizer: every added token of the four, parts of
them, white space, characters of several bytes, the placeholder, template words.
"""

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation import TEMPLATES, SlotTokens, encode_prompt, merge_text_parts, render, to_jinja

NAMES = ("llama_like_legacy_false", "neox_like", "opt_like", "qwen_like")
FILES = [Path(__file__).parents[1] / "data" / "tokenizers" / name / "tokenizer.json" for name in NAMES]
OWN = {added["content"] for file in FILES for added in json.loads(file.read_text())["added_tokens"]}
TOKENS = sorted(OWN | {"<imgpad>", "<img>", "</img>", "<plain-added>", "<|lone|>"})
PIECES = [
    *TOKENS,
    *(token[:3] for token in TOKENS),
    *(token[3:] for token in TOKENS),
    *("<image>", "USER:", "ASSISTANT:", "[INST]", "###", "{{ x }}", "{% if %}", "\\n", "'", '"'),
    *(" ", "  ", "\n", "\n\n", "\t", "\u00a0", "\u2581", "\x1c"),
    *("Hello", "a", " the", "1.", "é", "中文", "😀", "👨\u200d👩\u200d👧", "e\u0301"),
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
TEXT_PART = TEXT.map(lambda text: {"type": "text", "text": text})
IMAGE_PART = st.just({"type": "image"})
SLOTS = st.sampled_from([SlotTokens("<imgpad>", "<img>", "</img>"), SlotTokens("<imgpad>")])
EXAMPLES = settings(max_examples=int(os.environ.get("EXAMPLES", "40")), deadline=None)

# llama_2 writes BOS between the rounds, which the Qwen tokenizer has not.
PAIRS = [(name, key) for name in NAMES for key in TEMPLATES if (name, key) != ("qwen_like", "llama_2")]
each_pair = pytest.mark.parametrize(("name", "key"), PAIRS)


@st.composite
def chats(draw, template):
    """A chat that the template can write, ending with an answer."""
    messages = []
    if template.system and draw(st.booleans()):
        messages.append({"role": "system", "content": draw(TEXT)})
    for _ in range(1 if template.one_exchange else draw(st.integers(1, 3))):
        content = draw(st.one_of(TEXT, st.lists(st.one_of(TEXT_PART, IMAGE_PART), max_size=4)))
        if template.one_exchange:
            content = [{"type": "image"}, *parts_of({"content": content})]
        messages.append({"role": "user", "content": content})
        answer = draw(st.one_of(TEXT, st.lists(TEXT_PART, max_size=2)))
        messages.append({"role": "assistant", "content": answer})
    return messages


def parts_of(message):
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def text_of(message):
    return "".join(part.get("text", "") for part in parts_of(message))


def count_images(messages):
    return sum(part["type"] == "image" for message in messages for part in parts_of(message))


def harmless(message):
    """The same message with nothing in it that could be a token; an empty one stays empty."""
    parts = [{**part, "text": part["text"] and "x"} if "text" in part else part for part in parts_of(message)]
    return {**message, "content": parts}


def visible(text):
    """Without white space, and without "▁", which is white space to a Llama tokenizer."""
    return re.sub(r"[\s\u2581\x1c]", "", text)


@each_pair
@EXAMPLES
@given(data=st.data())
def test_typed_tokens_are_text(tokenizers, name, key, data):
    tokenizer, template = tokenizers[name], TEMPLATES[key]
    messages = data.draw(chats(template))
    slots = data.draw(SLOTS)
    images = count_images(messages)
    counts = data.draw(st.lists(st.integers(1, 5), min_size=images, max_size=images))
    rendered = render(messages, template, tokenizer, counts, slots=slots)
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

    # What is supervised reads as the answers and their ends, nothing else; the rest as the rest.
    assert all(label in (id_, IGNORE_INDEX) for id_, label in zip(ids, labels, strict=True))
    eos = tokenizer.eos_token
    answers = [text_of(message) for message in messages if message["role"] == "assistant"]
    before, after = (side.replace("{eos}", eos) for side in template.answer)
    expected = "".join(before + text + after for text in answers) + template.end.replace("{eos}", eos)
    said = tokenizer.decode([i for i in labels if i != IGNORE_INDEX])
    assert visible(said) == visible(expected)


@each_pair
@EXAMPLES
@given(data=st.data())
def test_jinja_gives_the_ids_of_render(tokenizers, name, key, data):
    tokenizer, template = tokenizers[name], TEMPLATES[key]
    messages = data.draw(chats(template))
    generate = data.draw(st.booleans())
    messages = messages[:-1] if generate else messages
    slots = data.draw(SLOTS)
    jinja = to_jinja(template, slots, tokenizer)
    expected = render(messages, template, tokenizer, 3, slots=slots, add_generation_prompt=generate).input_ids

    def write(chat):
        return tokenizer.apply_chat_template(chat, chat_template=jinja, tokenize=False, add_generation_prompt=generate)

    # What apply_chat_template(tokenize=True, sanitize_control_tokens=True) does to the messages.
    conversations = [merge_text_parts(messages)]
    (marked,), *_ = tokenizer._mark_chat_inputs(jinja, conversations, None, None, {}, True, False)
    assert encode_prompt(write(marked), tokenizer, slots, 3, sanitize_control_tokens=True) == expected

    if not any(token in text_of(message) for message in messages for token in TOKENS):
        text = write(messages)
        assert encode_prompt(text, tokenizer, slots, 3) == expected
        # Text alone needs nothing of ours, but a Llama tokenizer leaves out the "▁" behind a written BOS.
        if not count_images(messages) and name != "llama_like_legacy_false":
            assert tokenizer(text, add_special_tokens=False).input_ids == expected
