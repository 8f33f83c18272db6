"""The tokenizer of a GGUF file, written from the fast tokenizer that the model uses.

llama.cpp has no general tokenizer: it has an algorithm per kind (`tokenizer.ggml.model`) and, for byte-level BPE, a
fixed list of regular expressions (`tokenizer.ggml.pre`; ggml-org/llama.cpp, src/llama-vocab.cpp). A wrong choice gives
other tokens for most texts without an error, so a tokenizer is recognised by what it does, and any other is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmchat.conversation.safe_tokenizer import safe_tokenizer_for
from mmchat.conversion.gguf.gguf_file import Value
from mmchat.errors import UserError

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 splits a text before BPE (transformers, models/qwen2/tokenization_qwen2.py)."""
SPLITS = {QWEN2_SPLIT: "qwen2"}
"""Regular expression of the pre-tokenizer -> `tokenizer.ggml.pre`."""
NFC = {"type": "NFC"}
SPACE = "\u2581"
"""What SentencePiece writes for a space."""
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
"""SentencePiece's tokens for bytes."""
STOP_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
"""Keys of the tokens that end an answer."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Values of `tokenizer.ggml.token_type` (`gguf.TokenType`)."""


@dataclass(frozen=True)
class TokenizerKind:
    """An algorithm of llama.cpp that gives this tokenizer's ids.

    Attributes:
        model: `tokenizer.ggml.model`: "llama" is SentencePiece's BPE, "gpt2" byte-level BPE.
        pre: `tokenizer.ggml.pre`.
        space_prefix: Whether a space is put before every stretch of text ("llama" only).
        first_space: Whether a space is put before a text only at the very beginning. llama.cpp cannot do this, so the
            chat template does it (`chat_template.llamacpp_template`).
        spaces_once: Whether the space is left out where the text starts with one. The chat template does this, too; a
            lone space between two control tokens still becomes two.
    """

    model: str
    pre: str
    space_prefix: bool = False
    first_space: bool = False
    spaces_once: bool = False


def tokenizer_refusals(tokenizer: Any) -> list[str]:
    """Reasons why a tokenizer cannot be written."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    reasons = []
    if recognise(state) is None:
        how = {key: state[key] for key in ("normalizer", "pre_tokenizer")}
        reasons.append(
            f"its tokenizer is {state['model']['type']} with {json.dumps(how)[:300]}; known are SentencePiece's BPE "
            "with byte fallback (Llama 2, Vicuna), GPT-2's and Qwen2's byte-level BPE; llama.cpp would split texts in "
            "another way than any other one"
        )
    vocabulary = state["model"].get("vocab", {})
    if state["model"].get("byte_fallback") and (lacking := [b for b in BYTES if b not in vocabulary]):
        reasons.append(f"its tokenizer has no token {lacking[0]}; llama.cpp needs one for every byte")
    stripping = [a["content"] for a in state["added_tokens"] if a["lstrip"] or a["rstrip"] or a["single_word"]]
    if stripping:
        reasons.append(
            f"its tokens {', '.join(stripping)} strip or need white space around them, which llama.cpp ignores"
        )
    prefix = safe_tokenizer_for(tokenizer).prefix_tokens
    if prefix not in ([], [tokenizer.bos_token]):
        reasons.append(f"its tokenizer writes {''.join(prefix)} before a text; expected its BOS or nothing")
    return reasons


def kind_of(tokenizer: Any) -> TokenizerKind:
    """The kind of a tokenizer without refusals."""
    kind = recognise(json.loads(tokenizer.backend_tokenizer.to_str()))
    assert kind is not None, "tokenizer_refusals was not asked"
    return kind


def recognise(state: Mapping[str, Any]) -> TokenizerKind | None:
    """The kind of a tokenizer, or None if llama.cpp is not known to have it.

    Args:
        state: The content of tokenizer.json.
    """
    model = state["model"]
    plain = not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if model["type"] != "BPE" or not plain or model.get("ignore_merges"):
        return None
    normalizer, split = state["normalizer"], state["pre_tokenizer"]
    return _sentencepiece(normalizer, split) if model["byte_fallback"] else _byte_level(normalizer, split)


def _sentencepiece(normalizer: Any, split: Any) -> TokenizerKind | None:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    if normalizer == {"type": "Sequence", "normalizers": [prepend, replace]} and split is None:
        return TokenizerKind("llama", "default", space_prefix=True)
    if normalizer is None and split is not None and split["type"] == "Metaspace":
        scheme, expected = split["prepend_scheme"], {"replacement": SPACE, "split": False}
        if expected.items() <= split.items():
            always = scheme == "always"
            return TokenizerKind("llama", "default", always, first_space=scheme == "first", spaces_once=always)
    return None


def _byte_level(normalizer: Any, split: Any) -> TokenizerKind | None:
    if split is None:
        return None
    steps = split["pretokenizers"] if split["type"] == "Sequence" else [split]
    *before, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or last["use_regex"] != (not before):
        return None
    if not before:
        return TokenizerKind("gpt2", "gpt-2") if normalizer is None else None
    if len(before) > 1 or before[0]["type"] != "Split":
        return None
    isolated = before[0]["behavior"] == "Isolated" and not before[0]["invert"]
    pre = SPLITS.get(before[0]["pattern"].get("Regex", ""))
    known = isolated and pre is not None and normalizer in (None, NFC)
    return TokenizerKind("gpt2", str(pre)) if known else None


def normalises(tokenizer: Any) -> bool:
    """Whether a tokenizer composes characters (NFC), which llama.cpp does not do."""
    return json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"] == NFC


def tokenizer_metadata(
    tokenizer: Any, rows: int, stops: list[int], renamed: Mapping[str, str] | None = None
) -> dict[str, Value]:
    """Metadata of a tokenizer without refusals, without the chat template.

    Args:
        tokenizer: The tokenizer.
        rows: Number of rows of the embeddings. Rows above the tokenizer become unused tokens.
        stops: Ids that end an answer: one or two.
        renamed: Tokens that get another name in the file.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = kind_of(tokenizer)
    tokens, types = _tokens(state, rows, renamed or {})
    values: dict[str, Value] = {
        "model": kind.model,
        "pre": kind.pre,
        "tokens": tokens,
        "token_type": types,
        "add_bos_token": bool(safe_tokenizer_for(tokenizer).prefix_tokens),
        "add_eos_token": False,
        "eos_token_id": stops[0],
        # Without a BOS llama.cpp takes a fixed id, which is an ordinary token here.
        "bos_token_id": stops[0] if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
    }
    if len(stops) > 1:
        values["eot_token_id"] = stops[1]
    if tokenizer.pad_token_id is not None:
        values["padding_token_id"] = tokenizer.pad_token_id
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in state["model"]["merges"]]
    if kind.model == "llama":
        values |= {"scores": _scores(tokens, merges), "add_space_prefix": kind.space_prefix}
        values["remove_extra_whitespaces"] = False
        if tokenizer.unk_token_id is not None:
            values["unknown_token_id"] = tokenizer.unk_token_id
    else:
        values["merges"] = [" ".join(merge) for merge in merges]
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def _tokens(state: Mapping[str, Any], rows: int, renamed: Mapping[str, str]) -> tuple[list[str], list[int]]:
    """Text and type of every token, by id."""
    tokens, types = [f"[PAD{number}]" for number in range(rows)], [UNUSED] * rows
    fallback, byte_tokens = state["model"]["byte_fallback"], set(BYTES)
    for token, number in state["model"]["vocab"].items():
        tokens[number] = token
        types[number] = BYTE if fallback and token in byte_tokens else NORMAL
    for added in state["added_tokens"]:
        tokens[added["id"]] = renamed.get(added["content"], added["content"])
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
        if fallback and added["content"] == "<unk>":
            types[added["id"]] = UNKNOWN
    return tokens, types


def _scores(tokens: list[str], merges: list[tuple[str, str]]) -> list[float]:
    """Scores by which llama.cpp's SentencePiece makes the same merges: minus the rank of the first merge that gives a
    token. Tokens without a merge are below all of them."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def stop_ids(generation_config: Any) -> list[int]:
    """The tokens that end an answer.

    Raises:
        UserError: There is none, or more than llama.cpp has keys for.
    """
    stops = generation_config.eos_token_id
    stops = [stops] if isinstance(stops, int) else list(stops or [])
    if not 1 <= len(stops) <= len(STOP_KEYS):
        raise UserError(
            f"generation_config.json of the model has {len(stops)} stop tokens (eos_token_id: {stops}); llama.cpp's "
            f"files name 1 to {len(STOP_KEYS)}"
        )
    return stops
