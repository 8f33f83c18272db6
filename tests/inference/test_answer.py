"""Text of an answer: pieces that are complete when they are given out, and what stops it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mmchat.inference.answer import Answer
from mmchat.inference.engine import Handle, Prompt, Request, TokenLogprobs
from mmchat.inference.repetition import RepetitionGuard
from mmchat.inference.reply import Reply
from mmchat.inference.text_decoding import TextDecoder

WORDS = ["one", " two", "é", "数字", "🙂", " ", "\n", "stop", " st", "op ", "x"]


class BytesTokenizer:
    """Token n is a byte, as in byte-level tokenizers; 0 is special."""

    def decode(self, ids, skip_special_tokens=False):
        return bytes(one for one in ids if one or not skip_special_tokens).decode(errors="replace")


class SpacelessTokenizer:
    """As SentencePiece: a token starts with a space, which the first loses; 0 is special."""

    def decode(self, ids, skip_special_tokens):
        return "".join(WORDS[one - 1] if one > 3 else " " + WORDS[one - 1].strip() for one in ids if one)[
            1 if ids and 0 < ids[0] <= 3 else 0 :
        ]


def pieces(ids, tokenizer, stop=()):
    decoder = TextDecoder(tokenizer, stop)
    return [*(decoder.add(one) for one in ids), decoder.finish()]


def before(text, stop):
    """The text before the first stop string."""
    places = [text.find(one) for one in stop if one in text]
    return text[: min(places)] if places else text


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.lists(st.sampled_from(["stop", "two 数", "x"]), max_size=2))
def test_pieces_of_bytes_are_the_text_before_a_stop_string(words, stop):
    text = "".join(words)
    found = pieces(text.encode(), BytesTokenizer(), stop)
    assert "".join(found) == before(text, stop).strip()
    assert not any("\ufffd" in piece for piece in found)


@given(st.lists(st.integers(0, len(WORDS)), max_size=12))
def test_pieces_keep_the_spaces_between_tokens(ids):
    tokenizer = SpacelessTokenizer()
    assert "".join(pieces(ids, tokenizer)).strip() == tokenizer.decode(ids, True).strip()


def test_text_without_spaces_comes_character_by_character():
    found = pieces("数字数字".encode(), BytesTokenizer())
    assert [piece for piece in found if piece] == ["数", "字", "数", "字"]


def test_bytes_that_are_no_text_are_shown_at_the_end():
    assert "".join(pieces(b"a\xffb\xf0\x9f", BytesTokenizer())) == "a\ufffdb\ufffd"


def test_what_may_become_a_stop_string_is_held_back():
    assert pieces(b"a stox", BytesTokenizer(), ["stop"]) == ["a", "", "", "", "", " stox", ""]
    assert pieces(b"a stop it", BytesTokenizer(), ["stop"]) == ["a", *[""] * 9]


def test_a_continuation_keeps_white_space():
    decoder = TextDecoder(BytesTokenizer(), ("stop",), after=b"before")
    assert "".join([*(decoder.add(token) for token in b"  a b \n"), decoder.finish()]) == "  a b \n"
    decoder = TextDecoder(BytesTokenizer(), ("stop",), after=())
    assert "".join([*(decoder.add(token) for token in b" a stop b"), decoder.finish()]) == " a "


def test_a_word_that_continues_a_text_keeps_its_space(data_dir):
    tokenizer = AutoTokenizer.from_pretrained(data_dir / "tokenizers" / "llama_like_legacy_false")
    whole = tokenizer("one two three", add_special_tokens=False).input_ids
    for cut in range(1, len(whole)):
        decoder = TextDecoder(tokenizer, after=whole[:cut])
        text = "".join([*(decoder.add(token) for token in whole[cut:]), decoder.finish()])
        assert tokenizer.decode(whole[:cut]) + text == "one two three"


@pytest.fixture
def handle():
    return Handle(Request(Prompt([1])), lambda: None)


def test_a_looping_text_keeps_one_copy(handle):
    guard = RepetitionGuard(2, max_period=3, min_tokens=4)
    for number, token in enumerate(b"wabab"):
        handle.push(token)
        fired = guard(list(b"wabab"[: number + 1]))
    assert fired
    handle.prompt_tokens = 7
    handle.finish("stop")
    answer = Answer(handle, BytesTokenizer(), (), guard)
    assert answer.result() == Reply("wab", "repetition", tuple(b"wabab"), 7, 0)


def test_closing_the_iterator_cancels(handle):
    handle.push(ord("a"))
    stream = iter(Answer(handle, BytesTokenizer()))
    assert next(stream) == "a"
    stream.close()
    assert handle.result().reason == "cancelled"


def scored(ids, tokenizer, after=None, reason="length", stop=()):
    """The answer, complete, with log probabilities of each token and of token 1 in its place."""
    handle = Handle(Request(Prompt([1]), top_logprobs=2), lambda: None)
    for place, token in enumerate(ids):
        handle.push(token, TokenLogprobs(-float(place), ((token, -float(place)), (1, -9.0))))
    handle.finish(reason)
    return Answer(handle, tokenizer, stop, after=after)


@pytest.mark.parametrize("after", [None, (), (2, 5)])
@given(ids=st.lists(st.integers(0, len(WORDS)), max_size=12))
def test_texts_of_tokens_are_the_answer(after, ids):
    answer = scored(ids, SpacelessTokenizer(), after)
    reply, pieces = answer.result(), list(answer.pieces())
    text = "".join(token.text for token in reply.tokens)
    assert (text if after is not None else text.strip()) == reply.text
    assert [token.logprob for token in reply.tokens] == [-float(place) for place in range(len(ids))]
    assert "".join(piece.text for piece in pieces) == reply.text
    assert tuple(token for piece in pieces for token in piece.tokens) == reply.tokens


@given(st.binary(max_size=12))
def test_texts_of_tokens_are_the_answer_where_characters_have_several(data):
    data = data.replace(b"\0", b"") + "é数🙂".encode()
    reply = scored(data, BytesTokenizer(), ()).result()
    assert "".join(token.text for token in reply.tokens) == reply.text
    assert len(reply.tokens) == len(data)


def test_a_token_in_place_of_another_has_its_text_there():
    (first, second, third) = scored([2, 1, 0], SpacelessTokenizer(), (5,), "length").result().tokens
    assert (first.text, second.text, third.text) == (" two", " one", "")
    assert first.top == ((" two", -0.0), (" one", -9.0))
    part = scored("é".encode(), BytesTokenizer()).result().tokens
    assert [token.text for token in part] == ["", "é"]
    assert part[1].top == (("é", -1.0), ("\ufffd\x01", -9.0))


def test_the_token_that_ends_an_answer_is_left_out():
    assert [token.text for token in scored([2, 1, 0], SpacelessTokenizer(), (5,), "end").result().tokens] == [
        *(" two", " one")
    ]
    (only,) = scored(b"a", BytesTokenizer(), (), "end").result().tokens  # it is part of the text
    assert only.text == "a"
