"""The pieces that `mmchat data show` shows are the ids and labels of training, for any text."""

import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation import render
from mmchat.data.preview.pieces import Piece, read_pieces, runs
from mmchat.data.preview.printable import printable
from mmchat.errors import UserError

TOKENIZERS = Path(__file__).parents[1] / "fixtures" / "tokenizers"
NAMES = ("llama_like_legacy_false", "neox_like", "opt_like", "qwen_like")
TEMPLATES = ("vicuna_v1", "chatml", "vary_opt", "llama_2", "plain")
# llama_2 writes BOS between the rounds, which the Qwen tokenizer has not.
PAIRS = [(name, key) for name in NAMES for key in TEMPLATES if (name, key) != ("qwen_like", "llama_2")]

CONTROL = ("</s>", "<s>", "<|endoftext|>", "<|im_end|>", "<imgpad>", "<img>", "</img>")
MANY_BYTES = ("😀", "👨\u200d👩\u200d👧", "é", "中文", "e\u0301", "\ufffd", "🇩🇪", "\u00a0")
WORDS = ("Hello", " the", "1.", "USER:", "[/bold]", "  ", "\n", "\t", "\n\n")
TEXT = st.lists(st.sampled_from([*CONTROL, *MANY_BYTES, *WORDS]), max_size=6).map("".join)
EXAMPLES = settings(max_examples=int(os.environ.get("EXAMPLES", "25")), deadline=None)


@pytest.fixture(scope="module")
def tokenizers():
    loaded = {name: AutoTokenizer.from_pretrained(TOKENIZERS / name) for name in NAMES}
    for tokenizer in loaded.values():
        tokenizer.add_tokens([t for t in CONTROL[3:] if t not in tokenizer.get_added_vocab()], special_tokens=True)
        tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    return loaded


def unspaced(text: str) -> str:
    """Without white space and what a Llama tokenizer takes for it."""
    return re.sub(r"[\s\u2581]", "", text)


@pytest.mark.parametrize(("name", "key"), PAIRS)
@example(exchanges=[("", "😀👨\u200d👩\u200d👧 é"), ("</s>", "\ufffd😀\ufffd")], limit=None)
@example(exchanges=[("x", "中文😀</s>")], limit=-2)
@given(
    exchanges=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3),
    limit=st.one_of(st.none(), st.integers(-9, -1)),
)
@EXAMPLES
def test_pieces_are_the_ids_and_labels(tokenizers, name, key, exchanges, limit):
    """limit: so many tokens are cut off, perhaps inside a character."""
    tokenizer = tokenizers[name]
    exchanges = exchanges[:1] if key == "plain" else exchanges
    messages = []
    for number, (question, answer) in enumerate(exchanges):
        image = [] if number else [{"type": "image"}]
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": answer})
    how = {"template": key, "tokenizer": tokenizer, "image_tokens": 5}
    rendered = render(messages, **how)
    if limit is not None:
        length = max(len(rendered.input_ids) + limit, 1)
        try:
            rendered = render(messages, **how, max_length=length)
        except UserError:  # the image, or the only answer, would be cut
            return
    pieces = read_pieces(rendered, tokenizer)

    assert [id_ for piece in pieces for id_ in piece.ids] == rendered.input_ids
    shown = [id_ if piece.supervised else IGNORE_INDEX for piece in pieces for id_ in piece.ids]
    assert shown == rendered.labels
    assert [piece.start for piece in pieces] == np.cumsum([0, *(len(p.ids) for p in pieces)])[:-1].tolist()
    assert [(p.kind, p.text, p.ids) for p in pieces if p.kind == "image"] == [
        ("image", "image 1: 5 slots", (tokenizer.convert_tokens_to_ids("<imgpad>"),) * 5)
    ]
    again = [(piece, text) for _, _, members in runs(pieces) for piece, text in members]
    assert [piece for piece, _ in again] == pieces
    if limit is not None:
        return

    # Nothing is broken, and what is learned is the answers, with what the template adds to them.
    assert not [piece for piece in pieces if piece.kind == "broken"]
    typed = "".join(question + answer for question, answer in exchanges)
    assert "\ufffd" in typed or not any("\ufffd" in piece.text for piece in pieces)
    learned = unspaced("".join(p.text for p in pieces if p.supervised and p.kind == "text"))
    answers = unspaced("".join(answer for _, answer in exchanges))
    assert learned == answers
    # A token that somebody typed is not shown as one.
    harmless = [{**m, "content": "x"} if m["role"] == "assistant" else m for m in messages]
    for message in harmless[::2]:
        message["content"] = [*message["content"][:-1], {"type": "text", "text": "x"}]
    expected = [p.text for p in read_pieces(render(harmless, **how), tokenizer) if p.kind == "control"]
    assert [p.text for p in pieces if p.kind == "control"] == expected


@pytest.mark.parametrize("name", NAMES)
def test_text_is_shown_exactly(tokenizers, name):
    """Spaces included: decoders drop a text's first one."""
    answer = " a  an apple\n  and a 😀  "
    messages = [{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": answer}]
    pieces = read_pieces(render(messages, "chatml", tokenizers[name]), tokenizers[name])
    assert "".join(p.text for p in pieces if p.supervised) == f"{answer}<|im_end|>"


def test_an_emoji_of_several_tokens_is_one_piece(tokenizers):
    messages = [{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": "ok 😀"}]
    rendered = render(messages, "chatml", tokenizers["qwen_like"])
    (piece,) = [piece for piece in read_pieces(rendered, tokenizers["qwen_like"]) if "😀" in piece.text]
    assert (piece.kind, piece.text, len(piece.ids), piece.supervised) == ("text", "😀", 3, True)
    cut = render(messages, "chatml", tokenizers["qwen_like"], max_length=piece.start + 2)
    assert [p.kind for p in read_pieces(cut, tokenizers["qwen_like"])][-2:] == ["broken"] * 2


def test_white_space_and_invisible_characters_are_marked():
    text = " a b  c \n\td\u00a0e\x1b[31m\u202e\r 👩\u200d👧 "
    cuts = (0, 3, 4, 9, 12, len(text))
    pieces = [Piece("text", text[a:b], (1,), True, a) for a, b in pairwise(cuts)]
    ((kind, supervised, members),) = runs(pieces)
    assert (kind, supervised) == ("text", True)
    assert "".join(shown for _, shown in members) == "·a b··c·↵\n⇥d␣e⟨U+001B⟩[31m⟨U+202E⟩⟨U+000D⟩ 👩\u200d👧·"
    assert printable("a\nb") == "a↵b"
