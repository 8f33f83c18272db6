"""The template `auto`: labels from the tokenizer's own chat template, or an error if they are unknown."""

import pytest

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation import SlotTokens, encode_prompt, merge_text_parts, render, to_jinja
from mmchat.errors import UserError
from tests.conversation.conftest import GENERATION_JINJA, PLAIN_JINJA

SLOTS = SlotTokens("<imgpad>", "<img>", "</img>")
HEAD = "{%- for m in messages -%}"
TAIL = "{%- endfor -%}{%- if add_generation_prompt -%}{{- 'assistant>' -}}{%- endif -%}"
SIMPLE = HEAD + "{{- m.role + '>' + m.content + '\\n' -}}" + TAIL


def chat(*contents, **last):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return [*messages[:-1], {**messages[-1], **last}]


TWO = chat("q", "one", "r", "two")


@pytest.fixture
def with_jinja(bare):
    def make(jinja, name="qwen_like"):
        tokenizer = bare(name)
        tokenizer.add_tokens(["<imgpad>", "<img>", "</img>", "<|im_start|>", "<|im_end|>"], special_tokens=True)
        tokenizer.chat_template = jinja
        return tokenizer

    return make


def learned(rendered, tokenizer):
    return tokenizer.decode([label for label in rendered.labels if label != IGNORE_INDEX])


@pytest.mark.parametrize(
    ("jinja", "expected"),
    [
        (PLAIN_JINJA, "one<|im_end|>two<|im_end|>"),  # without the white space behind the last token
        (GENERATION_JINJA, " one<|endoftext|> two<|endoftext|>"),
        (SIMPLE, "one\ntwo\n"),  # where no token ends the turn, its line break does
        (HEAD + "{{- m.role + '>' + m.content -}}" + TAIL, "onetwo"),
        (HEAD + "{{- m.role + '>' + m.content | trim + eos_token + ' \\n ' -}}" + TAIL, "one</e>two</e>"),
    ],
)
def test_supervised_text(with_jinja, jinja, expected):
    tokenizer = with_jinja(jinja)
    assert learned(render(TWO, "auto", tokenizer), tokenizer) == expected.replace("</e>", tokenizer.eos_token)


def test_thoughts_that_the_prompt_lacks_are_supervised(with_jinja):
    """Qwen3's Jinja puts an empty thought before the last answer."""
    tokenizer = with_jinja(
        HEAD + "{{- m.role + '>' -}}{%- if m.role == 'assistant' and loop.last -%}"
        "{{- 'hm. ' -}}{%- endif -%}{{- m.content + '\\n' -}}" + TAIL
    )
    assert learned(render(chat("q", "one"), "auto", tokenizer), tokenizer) == "hm. one\n"
    with pytest.raises(UserError, match=r"message 1 are unknown, .*when other turns follow it; choose a named"):
        render(TWO, "auto", tokenizer)
    # Only the labels of supervised turns must be known.
    unlearned = [TWO[0], {**TWO[1], "train": False}, *TWO[2:]]
    assert learned(render(unlearned, "auto", tokenizer), tokenizer) == "hm. two\n"
    # And a prompt needs no labels.
    assert set(render(TWO[:3], "auto", tokenizer, add_generation_prompt=True).labels) == {IGNORE_INDEX}


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        (
            HEAD + "{{- m.role + '! ' + m.content + '\\n' -}}" + TAIL,
            "message 1 .* continuation of its generation prompt",
        ),
        (
            HEAD + "{{- m.role + '>' + m.content | upper + '\\n' -}}" + TAIL,
            "message 1 .* does not write the answer's text",
        ),
        (
            HEAD + "{%- if loop.length > 3 -%}{{- '+' -}}{%- endif -%}{{- m.role + '>' + m.content -}}" + TAIL,
            "message 1 .* when other turns follow it",
        ),
        (HEAD + "{% generation %}{{- m.content -}}{% endgeneration %}" + TAIL, "4 generation blocks for 2 assistant"),
        (
            HEAD
            + "{%- if m.role == 'assistant' -%}{{- m.content -}}{% generation %}.{% endgeneration %}{%- endif -%}"
            + TAIL,
            "message 1 .* does not write the answer's text",
        ),
        (HEAD + "{{- raise_exception('No ' + m.role) -}}" + TAIL, "refuses the conversation: No user"),
    ],
)
def test_unknown_labels_are_refused(with_jinja, jinja, message):
    with pytest.raises(UserError, match=message):
        render(TWO, "auto", with_jinja(jinja))


@pytest.mark.parametrize("jinja", [PLAIN_JINJA, GENERATION_JINJA])
def test_unsupervised_turns(with_jinja, jinja):
    tokenizer = with_jinja(jinja)
    rendered = render([TWO[0], {**TWO[1], "train": False}, *TWO[2:]], "auto", tokenizer)
    assert "two" in learned(rendered, tokenizer) and "one" not in learned(rendered, tokenizer)
    assert rendered.input_ids == render(TWO, "auto", tokenizer).input_ids
    with pytest.raises(UserError, match="nothing to learn"):
        render(chat("q", "one", train=False), "auto", tokenizer)


def test_no_chat_template(with_jinja):
    with pytest.raises(UserError, match="this tokenizer has none"):
        render(TWO, "auto", with_jinja(None))
    with pytest.raises(UserError, match="this tokenizer has none"):
        to_jinja("auto", SLOTS, with_jinja(None))


def test_an_image_that_the_jinja_leaves_out(with_jinja):
    tokenizer = with_jinja(HEAD + "{{- m.role + '>' + m.content.split('<imgpad>')[-1] -}}" + TAIL)
    messages = [{"from": "human", "value": "<image> what?"}, {"from": "gpt", "value": "a"}]
    with pytest.raises(UserError, match=r"'</img>' stands alone"):
        render(messages, "auto", tokenizer)
    tokenizer.chat_template = HEAD + "{{- m.role + '>' + m.content.split('</img>')[-1] -}}" + TAIL
    with pytest.raises(UserError, match=r"hold 1 image, the tokenizer's chat template writes 0"):
        render(messages, "auto", tokenizer)


def test_text_that_the_jinja_leaves_out(with_jinja):
    """Like a Jinja that reads only content parts."""
    tokenizer = with_jinja(HEAD + "{{- m.role + '>' -}}{%- if loop.index0 > 1 -%}{{- m.content -}}{%- endif -%}" + TAIL)
    with pytest.raises(UserError, match="changes the text of message 0"):
        render(TWO[:3], "auto", tokenizer, add_generation_prompt=True)


def test_messages_are_numbered_as_given(with_jinja):
    tokenizer = with_jinja(HEAD + "{{- m.role + '!' + m.content -}}" + TAIL)
    with pytest.raises(UserError, match="the labels of message 1 are unknown"):
        render(TWO, "auto", tokenizer, system="Be brief.")


def test_bos_comes_once(with_jinja):
    rendered = []
    for jinja in (PLAIN_JINJA, PLAIN_JINJA.replace("{{- bos_token -}}\n", "")):
        tokenizer = with_jinja(jinja, "llama_like_legacy_false")
        rendered.append(render(TWO, "auto", tokenizer))
        assert rendered[-1].input_ids.count(tokenizer.bos_token_id) == 1
    assert rendered[0] == rendered[1]


def test_both_dialects_and_system(with_jinja):
    tokenizer = with_jinja(PLAIN_JINJA)
    data = [{"from": "human", "value": "a\n<image>\nb"}, {"from": "gpt", "value": "c"}]
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "c"}]
    assert render(data, "auto", tokenizer, 3) == render(messages, "auto", tokenizer, 3)
    own = [{"role": "system", "content": "Yours."}, *messages]
    assert render(own, "auto", tokenizer, 3) == render(messages, "auto", tokenizer, 3, system="Yours.")
    assert render(own, "auto", tokenizer, 3) == render(own, "auto", tokenizer, 3, system="Other.")
    assert render(messages, "auto", tokenizer, 3) == render(messages, "auto", tokenizer, 3, system="")


@pytest.mark.parametrize(
    "own", [PLAIN_JINJA, GENERATION_JINJA, "  \n " + SIMPLE, "\n\n" + SIMPLE, "  {% if 1 %}\n{% endif %}" + SIMPLE]
)
@pytest.mark.parametrize("system", [None, "", "Be <|im_end|> brief."])
def test_the_saved_jinja_takes_parts_and_writes_the_same(with_jinja, own, system):
    tokenizer = with_jinja(own)
    messages = chat([{"type": "text", "text": "<im"}, {"type": "text", "text": "g>"}, {"type": "image"}], "a", "b", "c")
    tokenizer.chat_control_tokens = list(tokenizer.get_added_vocab())
    jinja = to_jinja("auto", SLOTS, tokenizer, system)
    (marked,), *_ = tokenizer._mark_chat_inputs(jinja, [merge_text_parts(messages)], None, None, {}, True, False)
    text = tokenizer.apply_chat_template(marked, chat_template=jinja, tokenize=False)
    expected = render(messages, "auto", tokenizer, 3, system=system)
    assert encode_prompt(text, tokenizer, SLOTS, 3, sanitize_control_tokens=True) == expected.input_ids
    # A tokenizer that was saved with an assistant has the longer Jinja as its own.
    tokenizer.chat_template = jinja
    assert render(messages, "auto", tokenizer, 3, system=system) == expected
    assert to_jinja("auto", SLOTS, tokenizer, system) == jinja
