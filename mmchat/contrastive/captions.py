"""Captions -> token ids: special tokens, CLIP's text cleaning, explicit truncation; and CLIP's own vocabulary file."""

import gzip
import html
from pathlib import Path
from typing import Any

import ftfy
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTokenizer, PreTrainedConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mmchat.errors import UserError
from mmchat.pretrained import open_pretrained

CLIP_MERGES = 49152 - 256 - 2
"""Number of merges in the file that CLIP uses (openai/CLIP, clip/simple_tokenizer.py)."""
QUOTED_CHARACTERS = 60
"""Largest number of characters of a caption that a message quotes."""


def encode_caption(tokenizer: Any, caption: str, context_length: int, truncate: bool = False) -> list[int]:
    """Token ids of a caption with special tokens.

    Args:
        tokenizer: The tokenizer.
        caption: The text.
        context_length: Largest number of tokens with special tokens.
        truncate: Whether to truncate a longer caption.

    Raises:
        UserError: The caption is too long and `truncate` is False.
    """
    ids, dropped = truncate_caption(tokenizer, caption, context_length)
    if dropped and not truncate:
        quoted = caption if len(caption) <= QUOTED_CHARACTERS else caption[:QUOTED_CHARACTERS] + "..."
        raise UserError(
            f"the text {quoted!r} has {len(ids) + dropped} tokens with special tokens, and the text encoder takes "
            f"{context_length}; shorten it, or add --truncate"
        )
    return ids


def truncate_caption(tokenizer: Any, caption: str, context_length: int) -> tuple[list[int], int]:
    """Token ids of as much of a caption as fits, with special tokens, and the number of tokens that were dropped."""
    prefix, suffix = prefix_and_suffix_ids(tokenizer)
    text = clean_text(caption) if isinstance(tokenizer, CLIPTokenizer) else caption
    ids = tokenizer(text, add_special_tokens=False).input_ids
    kept = ids[: context_length - len(prefix) - len(suffix)]
    return [*prefix, *kept, *suffix], len(ids) - len(kept)


def prefix_and_suffix_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Special tokens before and after a text: the tokenizer's, or BOS and EOS if it adds no end (most assistants')."""
    full, bare = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    prefix, suffix = full[:start], full[start + len(bare) :]
    if suffix:
        return prefix, suffix
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [] if bos is None else [bos], [eos]


def clean_text(text: str) -> str:
    """Fix wrong encodings, curly quotes and HTML entities, as CLIP does and transformers' tokenizer does not
    (openai/CLIP, clip/simple_tokenizer.py `basic_clean`)."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def open_tokenizer(source: str) -> Any:
    """Open a tokenizer from a directory, a hub name, or CLIP's own file of merges.

    Raises:
        UserError: It is none of these.
    """
    if Path(source).is_file():
        return read_merges(Path(source))
    return open_pretrained(AutoTokenizer, source, "tokenizer")


def read_merges(path: Path) -> CLIPTokenizer:
    """Build CLIP's tokenizer from `bpe_simple_vocab_16e6.txt.gz`: a version line, then one merge per line.

    The vocabulary is, in order: all bytes, all bytes at the end of a word, all merges, two special tokens.

    Raises:
        UserError: The file is something else.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not CLIP's vocabulary (bpe_simple_vocab_16e6.txt.gz): {error}") from None
    merges = [tuple(line.split()) for line in lines[1 : CLIP_MERGES + 1] if line]
    if not merges or any(len(merge) != 2 for merge in merges):
        raise UserError(
            f"{path} is not CLIP's vocabulary (bpe_simple_vocab_16e6.txt.gz): expected two tokens on each line"
        )
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: number for number, token in enumerate(tokens)}, merges)


def refuse_other_tokenizer(tokenizer: Any, text: PreTrainedConfig, where: str) -> None:
    """Raise UserError if a text encoder was made for another tokenizer.

    Other encoders than CLIP's often have spare embeddings and wrong special ids in their config, which are not checked.
    """
    problems = []
    if len(tokenizer) > text.vocab_size or (isinstance(text, CLIPTextConfig) and len(tokenizer) != text.vocab_size):
        problems.append(f"it has {len(tokenizer)} tokens, the text encoder {text.vocab_size}")
    if isinstance(text, CLIPTextConfig):
        for name in ("bos_token_id", "eos_token_id"):
            found, expected = getattr(tokenizer, name), getattr(text, name)
            if found != expected:
                problems.append(f"its {name} is {found}, the text encoder's {expected}")
    if problems:
        raise UserError(f"the tokenizer in {where} is not the one of its text encoder: {'; '.join(problems)}")
