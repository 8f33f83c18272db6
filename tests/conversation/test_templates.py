"""The text, the supervised text and the control tokens of each template."""

import re
from pathlib import Path

import pytest
from tokenizers import AddedToken

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation import TEMPLATES, SlotTokens, encode_prompt, render, stop_tokens, to_jinja
from mmchat.errors import UserError

SLOTS = SlotTokens("<imgpad>", "<img>", "</img>")
CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "Q"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "R"},
    {"role": "assistant", "content": "B"},
]

# Two rounds behind a system message, and what is learned. [eos] is the tokenizer's.
READS = {
    "llama_3": (
        "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "A<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nR<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "B<|eot_id|>",
        "A<|eot_id|>B<|eot_id|>",
    ),
    "mistral": ("[INST] S\n\nQ [/INST] A[eos][INST] R [/INST] B[eos]", " A[eos] B[eos]"),
    "qwen_2": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n",
        "A<|im_end|>B<|im_end|>",
    ),
    "gemma": (
        "<start_of_turn>user\nS\n\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
        "<start_of_turn>user\nR<end_of_turn>\n<start_of_turn>model\nB<end_of_turn>\n",
        "A<end_of_turn>B<end_of_turn>",
    ),
    "phi": (
        "<|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\nA<|end|>\n"
        "<|user|>\nR<|end|>\n<|assistant|>\nB<|end|>\n[eos]",
        "A<|end|>B<|end|>[eos]",
    ),
    "human_assistant": (
        "S\n\n### Human: Q\n### Assistant: A[eos]\n### Human: R\n### Assistant: B[eos]\n",
        " A[eos] B[eos]",
    ),
    "idefics3": (
        "System: S<end_of_utterance>\nUser: Q<end_of_utterance>\nAssistant: A<end_of_utterance>\n"
        "User: R<end_of_utterance>\nAssistant: B<end_of_utterance>\n",
        " A<end_of_utterance> B<end_of_utterance>",
    ),
}
READS["smolvlm"] = ("<|im_start|>" + READS["idefics3"][0], READS["idefics3"][1])
READS |= dict.fromkeys(("chatml", "qwen_2_5", "qwen_3", "nanovlm", "auto"), READS["qwen_2"])


def read(rendered, tokenizer):
    learned = [label for label in rendered.labels if label != IGNORE_INDEX]
    return tokenizer.decode(rendered.input_ids), tokenizer.decode(learned)


@pytest.mark.parametrize("key", READS)
def test_two_rounds(qwen, key):
    text, learned = (expected.replace("[eos]", qwen.eos_token) for expected in READS[key])
    assert read(render(CHAT, key, qwen), qwen) == (text, learned)


def test_every_template_is_read_here_or_compared_with_its_original():
    originals = {"plain", "vicuna_v1", "llama_2", "mpt", "vary_opt", "vary_qwen"}
    assert set(READS) | originals == set(TEMPLATES)


def test_every_template_is_in_the_docs():
    docs = (Path(__file__).parents[2] / "docs" / "guides" / "templates.md").read_text().split("\n## ")[1]
    assert re.findall(r"^\| `(\w+)` \|", docs, re.MULTILINE) == list(TEMPLATES)


@pytest.mark.parametrize(
    ("key", "system"),
    [
        ("chatml", "You are a helpful assistant."),
        ("qwen_2", "You are a helpful assistant."),
        ("qwen_2_5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    ],
)
def test_default_system_messages(qwen, key, system):
    text, _ = read(render(CHAT[1:], key, qwen), qwen)
    assert text.startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nQ")


@pytest.mark.parametrize("key", ["qwen_3", "llama_3", "mistral", "gemma", "phi", "nanovlm"])
def test_templates_without_a_default_system_message(qwen, key):
    assert render(CHAT[1:], key, qwen) == render(CHAT[1:], key, qwen, system="")


def test_tools_of_each_template(qwen):
    chat = [
        *CHAT[1:3],
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "B"},
    ]
    expected = {
        "chatml": "<|im_start|>tool\n1<|im_end|>\n<|im_start|>tool\n2<|im_end|>\n",
        "qwen_2_5": "<|im_start|>user\n<tool_response>\n1\n</tool_response>"
        "\n<tool_response>\n2\n</tool_response><|im_end|>\n",
        "llama_3": "<|start_header_id|>ipython<|end_header_id|>\n\n1<|eot_id|>"
        "<|start_header_id|>ipython<|end_header_id|>\n\n2<|eot_id|>",
    }
    expected |= {"nanovlm": expected["chatml"], "qwen_2": expected["chatml"], "qwen_3": expected["qwen_2_5"]}
    assert expected.keys() == {key for key, template in TEMPLATES.items() if template.tool}
    for key, tools in expected.items():
        text, learned = read(render(chat, key, qwen), qwen)
        between = text[text.index("A<") + 1 : text.rindex("B<")]
        end = TEMPLATES[key].answer[1]
        assert between == end + TEMPLATES[key].after_answer + tools + TEMPLATES[key].header
        assert learned == f"A{end}B{end}"


# -- what a template writes is a token where the tokenizer has it, and text where not


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    ("key", "tokens"),
    [
        ("mistral", ["[INST]", "[/INST]"]),
        ("llama_2", ["<<SYS>>\n", "<<SYS>>", "[INST]"]),
        ("vicuna_v1", ["USER", "ASSISTANT:", "ASSIST", "questions"]),
        ("human_assistant", ["###", "### Human: ", "\n### "]),
    ],
)
def test_written_tokens_are_tokens(bare, key, tokens, special):
    tokenizer = bare("opt_like")
    before = render(CHAT, key, tokenizer, system=None).input_ids
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    tokenizer.chat_control_tokens = tokens
    written = render(CHAT, key, tokenizer)
    assert written.input_ids != before
    text = tokenizer.apply_chat_template(CHAT, chat_template=to_jinja(key, SLOTS, tokenizer), tokenize=False)
    assert written.input_ids == encode_prompt(text, tokenizer, SLOTS, 1)
    assert written.input_ids == tokenizer(text, add_special_tokens=False).input_ids
    assert read(written, tokenizer)[1] == " A</s> B</s>" if key != "llama_2" else " A </s> B </s>"


def test_typed_tokens_are_text(bare):
    tokenizer = bare("opt_like")
    tokenizer.add_tokens(["[INST]", "[/INST]"])
    typed = [{**message, "content": "[/INST] a [INST]"} for message in CHAT]
    ids = render(typed, "mistral", tokenizer, system="[INST]").input_ids
    assert [ids.count(tokenizer.convert_tokens_to_ids(token)) for token in ("[INST]", "[/INST]")] == [2, 2]


def test_a_token_of_two_literals(bare):
    """A token that `after_answer` and `user` of ChatML spell together. It begins outside the answer."""
    tokenizer = bare("neox_like")
    tokenizer.add_tokens([AddedToken("\n<|im_start|>user\n", normalized=False, special=True)])
    rendered = render(CHAT[1:], "chatml", tokenizer)
    text = tokenizer.apply_chat_template(CHAT[1:], chat_template=to_jinja("chatml", SLOTS, tokenizer), tokenize=False)
    assert rendered.input_ids == tokenizer(text).input_ids
    assert rendered.input_ids.count(len(tokenizer) - 1) == 2
    assert read(rendered, tokenizer)[1] == "A<|im_end|>B<|im_end|>"


def test_white_space_tokens_are_text(bare):
    """For example Gemma's "\\n\\n", which is not a control token."""
    tokenizer = bare("opt_like")
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    typed = [{**message, "content": "a\n\nb"} for message in CHAT]
    ids = render(typed, "human_assistant", tokenizer).input_ids
    text = tokenizer.apply_chat_template(
        typed, chat_template=to_jinja("human_assistant", SLOTS, tokenizer), tokenize=False
    )
    assert ids == tokenizer(text, add_special_tokens=False).input_ids
    assert ids.count(len(tokenizer) - 1) == 6  # five messages and the template's own


def test_a_required_token_must_be_there(bare):
    with pytest.raises(UserError, match="no token '<start_of_turn>'"):
        render(CHAT, "gemma", bare("opt_like"))
    with pytest.raises(UserError, match="no token '<start_of_turn>'"):
        to_jinja("gemma", SLOTS, bare("opt_like"))


@pytest.mark.parametrize(
    ("key", "ends"),
    [
        ("plain", []),
        ("vicuna_v1", ["[eos]"]),
        ("llama_2", ["[eos]"]),
        ("chatml", ["<|im_end|>"]),
        ("phi", ["<|end|>", "[eos]"]),
        ("vary_opt", ["[eos]"]),
        ("gemma", ["<end_of_turn>"]),
        ("auto", ["<|im_end|>"]),
    ],
)
def test_where_generation_stops(opt, key, ends):
    expected = opt.convert_tokens_to_ids([opt.eos_token if end == "[eos]" else end for end in ends])
    assert stop_tokens(key, opt, SLOTS) == expected
