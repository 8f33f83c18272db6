"""Tokenizers of GGUF files: recognised by what they do, written without loss, all others refused."""

import json
from dataclasses import astuple

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from mmchat.conversion.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    kind_of,
    normalises,
    recognise,
    stop_ids,
    tokenizer_metadata,
    tokenizer_refusals,
)
from mmchat.errors import UserError
from tests.conversion.gguf_assistants import TOKENIZER_KINDS, TOKENIZERS, byte_level, make_tokenizer

EXPECTED = {
    "llama 2": ("llama", "default", True, False, False),
    "metaspace always": ("llama", "default", True, False, True),
    "metaspace first": ("llama", "default", False, True, False),
    "metaspace never": ("llama", "default", False, False, False),
    "gpt-2": ("gpt2", "gpt-2", False, False, False),
    "qwen2": ("gpt2", "qwen2", False, False, False),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """tokenizer(kind), with slot tokens."""

    def make(kind):
        opened = AutoTokenizer.from_pretrained(make_tokenizer(kind, tmp_path_factory.mktemp("tokenizer")))
        opened.add_tokens(["<imgpad>", "<img>", "</img>"], special_tokens=True)
        return opened

    return make


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_known_kinds(tokenizer, kind):
    opened = tokenizer(kind)
    assert astuple(kind_of(opened)) == EXPECTED[kind]
    assert tokenizer_refusals(opened) == []
    assert normalises(opened) == (kind == "qwen2")


@pytest.mark.parametrize("kind", ["llama 2", "qwen2"])
def test_everything_is_written(tokenizer, kind):
    opened = tokenizer(kind)
    opened.add_tokens(["<plain>"])
    state = json.loads(opened.backend_tokenizer.to_str())
    rows = len(opened) + 3
    values = tokenizer_metadata(opened, rows, [opened.eos_token_id, 7], {"<img>": "<|image_start|>"})
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == rows
    vocabulary = {**opened.get_vocab()}
    vocabulary["<|image_start|>"] = vocabulary.pop("<img>")
    assert dict(zip(tokens[:-3], range(rows), strict=False)) == vocabulary
    assert tokens[-3:] == [f"[PAD{rows - 3}]", f"[PAD{rows - 2}]", f"[PAD{rows - 1}]"]
    assert types[-4:] == [USER_DEFINED, UNUSED, UNUSED, UNUSED]
    assert types[opened.convert_tokens_to_ids("<imgpad>")] == CONTROL
    assert (values["tokenizer.ggml.eos_token_id"], values["tokenizer.ggml.eot_token_id"]) == (opened.eos_token_id, 7)
    merges = [tuple(merge) for merge in state["model"]["merges"]]
    if kind == "qwen2":
        assert [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]] == merges
        assert values["tokenizer.ggml.add_bos_token"] is False
        assert types[0] == NORMAL
        return
    scores = values["tokenizer.ggml.scores"]
    assert values["tokenizer.ggml.add_bos_token"] is True
    assert values["tokenizer.ggml.unknown_token_id"] == 0 and types[0] == UNKNOWN
    assert types.count(BYTE) == 256 and tokens[types.index(BYTE)] == "<0x00>"
    first = {left + right: rank for rank, (left, right) in reversed(list(enumerate(merges)))}
    made = sorted(first, key=first.get)
    assert sorted(made, key=lambda token: -scores[vocabulary[token]]) == made
    others = [scores[number] for token, number in vocabulary.items() if token not in first]
    assert max(others) < min(scores[vocabulary[token]] for token in made)


def state_of(kind, tokenizer, **changes):
    state = json.loads(tokenizer(kind).backend_tokenizer.to_str())
    model = changes.pop("model", {})
    return {**state, **changes, "model": {**state["model"], **model}}


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", {"pre_tokenizer": byte_level(LLAMA3)}),
        ("qwen2", {"pre_tokenizer": None}),
        ("qwen2", {"normalizer": {"type": "NFKC"}}),
        ("qwen2", {"pre_tokenizer": {**byte_level("x"), "pretokenizers": byte_level("x")["pretokenizers"][1:]}}),
        ("gpt-2", {"normalizer": {"type": "NFC"}}),
        ("gpt-2", {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}}),
        ("gpt-2", {"model": {"ignore_merges": True}}),
        ("gpt-2", {"model": {"type": "WordPiece"}}),
        ("llama 2", {"normalizer": None}),
        ("llama 2", {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}}),
        ("llama 2", {"pre_tokenizer": {"type": "Whitespace"}}),
        ("metaspace first", {"model": {"dropout": 0.1}}),
    ],
)
def test_unknown_kinds(tokenizer, kind, changes):
    assert recognise(state_of(kind, tokenizer)) is not None
    assert recognise(state_of(kind, tokenizer, **changes)) is None


def test_refusals_say_why(tokenizer):
    neox = AutoTokenizer.from_pretrained(TOKENIZERS / "neox_like")
    assert tokenizer_refusals(neox) == []  # GPT-2's regular expression
    neox.add_tokens([AddedToken("<|lone|>", lstrip=True)])
    (reason,) = tokenizer_refusals(neox)
    assert reason.startswith("its tokens <|lone|> strip or need white space")
    opened = tokenizer("qwen2")
    opened.backend_tokenizer.pre_tokenizer = None
    (reason,) = tokenizer_refusals(opened)
    assert reason.startswith('its tokenizer is BPE with {"normalizer": {"type": "NFC"}, "pre_tokenizer": null}')


class Stops:
    def __init__(self, eos):
        self.eos_token_id = eos


def test_stop_tokens():
    assert stop_ids(Stops(2)) == [2] and stop_ids(Stops([2, 5])) == [2, 5]
    for eos in (None, [], [1, 2, 3]):
        with pytest.raises(UserError, match=r"has [03] stop tokens .* 1 to 2"):
            stop_ids(Stops(eos))
