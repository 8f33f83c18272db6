"""Captions as token ids: CLIP's tokenizer out of its own file, frames, and what is too long."""

import gzip
import html
import json
import os
from itertools import pairwise

import ftfy
import pytest
import regex
from transformers import AutoTokenizer, CLIPTextConfig, SiglipTextConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mmchat.contrastive.captions import (
    encode_caption,
    open_tokenizer,
    prefix_and_suffix_ids,
    refuse_other_tokenizer,
    truncate_caption,
)
from mmchat.errors import UserError
from tests.contrastive.conftest import MERGES

TEXTS = [
    "A  Photo of the\tCAT!!",
    "naïve café — “quotes” … the cat's",
    "你好,世界",
    "12345 6,789.0",
    "&amp;lt;b&gt; don't can't it's",
    "emoji 🙂 schÃ¶n",
    "",
]


def slow_ids(text):
    """One word after another, one merge after another (arXiv:1508.07909), with CLIP's pattern of words."""
    letters = bytes_to_unicode()
    tokens = [*letters.values(), *(f"{one}</w>" for one in letters.values())]
    tokens += ["".join(merge.split()) for merge in MERGES]
    text = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
    ids = []
    for word in regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", text):
        pieces = [letters[byte] for byte in word.encode()]
        pieces[-1] += "</w>"
        while known := [pair for pair in map(" ".join, pairwise(pieces)) if pair in MERGES]:
            first, second = min(known, key=MERGES.index).split()
            merged = []
            for piece in pieces:
                if merged and (merged[-1], piece) == (first, second):
                    merged[-1] += piece
                else:
                    merged.append(piece)
            pieces = merged
        ids += [tokens.index(piece) for piece in pieces]
    return ids


@pytest.mark.parametrize("text", TEXTS)
def test_clips_own_file(merges_file, tmp_path, text):
    tokenizer = open_tokenizer(str(merges_file))
    assert len(tokenizer) == 524
    expected = [522, *slow_ids(text), 523]
    assert encode_caption(tokenizer, text, 77) == expected
    tokenizer.save_pretrained(tmp_path)
    assert encode_caption(open_tokenizer(str(tmp_path)), text, 77) == expected


@pytest.mark.skipif("MMCHAT_CLIP_VOCABULARY" not in os.environ, reason="names no bpe_simple_vocab_16e6.txt.gz")
def test_the_originals_ids(data_dir):
    """What OpenAI's own tokenizer made of twelve strings; its vocabulary is no part of this repository."""
    tokenizer = open_tokenizer(os.environ["MMCHAT_CLIP_VOCABULARY"])
    rows = json.loads((data_dir / "openai_clip" / "tokenize.json").read_text())["rows"]
    assert (len(tokenizer), len(rows)) == (49408, 12)
    for row in rows:
        ids, cut = truncate_caption(tokenizer, row["text"], 77)
        assert ids + [0] * (77 - len(ids)) == row["truncated"]
        assert (cut > 0) == ("error" in row)


@pytest.mark.parametrize(
    "content",
    [b"no archive", gzip.compress(b"#version\nonly\n", mtime=0), gzip.compress(b"\xff\xfe", mtime=0)],
    ids=["no archive", "no merges", "no text"],
)
def test_other_files_are_no_vocabulary(tmp_path, content):
    path = tmp_path / "bpe.txt.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bpe\.txt\.gz is not CLIP's vocabulary"):
        open_tokenizer(str(path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("llama_like_legacy_false", ([1], [2])), ("opt_like", ([2], [2])), ("qwen_like", ([], [1500]))],
)
def test_frames(data_dir, name, expected):
    assert prefix_and_suffix_ids(AutoTokenizer.from_pretrained(data_dir / "tokenizers" / name)) == expected


def test_too_long(merges_file):
    tokenizer = open_tokenizer(str(merges_file))
    whole = encode_caption(tokenizer, "the cat of cat", 6)
    assert len(whole) == 6
    assert truncate_caption(tokenizer, "the cat of cat", 5) == ([*whole[:4], whole[-1]], 1)
    assert encode_caption(tokenizer, "the cat of cat", 5, truncate=True) == [*whole[:4], whole[-1]]
    with pytest.raises(UserError, match=r"text 'the cat of cat' has 6 tokens.* takes 5; .*--truncate"):
        encode_caption(tokenizer, "the cat of cat", 5)
    with pytest.raises(UserError, match=r"text '(the ){15}\.\.\.' has 102 tokens.* takes 77"):
        encode_caption(tokenizer, "the " * 100, 77)


def test_another_models_tokenizer(merges_file, data_dir):
    tokenizer, special = open_tokenizer(str(merges_file)), {"bos_token_id": 522, "eos_token_id": 523}
    refuse_other_tokenizer(tokenizer, CLIPTextConfig(vocab_size=524, **special), "here")
    with pytest.raises(UserError, match=r"tokenizer in here is not .*: it has 524 tokens, the text encoder 525$"):
        refuse_other_tokenizer(tokenizer, CLIPTextConfig(vocab_size=525, **special), "here")
    with pytest.raises(UserError, match=r"its eos_token_id is 523, the text encoder's 2$"):
        refuse_other_tokenizer(tokenizer, CLIPTextConfig(vocab_size=524, **special | {"eos_token_id": 2}), "here")
    begins_with_none = open_tokenizer(str(data_dir / "tokenizers" / "qwen_like"))
    with pytest.raises(UserError, match=r"its bos_token_id is None, the text encoder's 522"):
        refuse_other_tokenizer(begins_with_none, CLIPTextConfig(vocab_size=524, **special), "here")
    # Others' encoders have rows to spare; too few is still another model.
    refuse_other_tokenizer(tokenizer, SiglipTextConfig(vocab_size=600), "here")
    with pytest.raises(UserError, match="it has 524 tokens, the text encoder 500"):
        refuse_other_tokenizer(tokenizer, SiglipTextConfig(vocab_size=500), "here")
