"""A caption becomes token ids: framed, cleaned where the tokenizer is CLIP's, and never too long without a word."""

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
"""How many of the file's merges CLIP uses (openai/CLIP, clip/simple_tokenizer.py)."""
SHOWN = 60
"""Letters of a caption that a message quotes."""


def encode_caption(tokenizer: Any, caption: str, context_length: int, truncate: bool = False) -> list[int]:
    """What begins a text, the caption, what ends it; of one that is too long, with `truncate`, as much as fits.

    Raises:
        UserError: it is too long.
    """
    ids, cut = truncate_caption(tokenizer, caption, context_length)
    if cut and not truncate:
        shown = caption if len(caption) <= SHOWN else caption[:SHOWN] + "..."
        raise UserError(
            f"the text {shown!r} has {len(ids) + cut} tokens with those that begin and end it, and the text encoder "
            f"takes {context_length}; shorten it, or have it cut (--truncate)"
        )
    return ids


def truncate_caption(tokenizer: Any, caption: str, context_length: int) -> tuple[list[int], int]:
    """(as much of a caption as fits, framed; how many tokens were cut off before its end)."""
    before, after = prefix_and_suffix_ids(tokenizer)
    text = cleaned(caption) if isinstance(tokenizer, CLIPTokenizer) else caption
    ids = tokenizer(text, add_special_tokens=False).input_ids
    kept = ids[: context_length - len(before) - len(after)]
    return [*before, *kept, *after], len(ids) - len(kept)


def prefix_and_suffix_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What begins and what ends a text: the tokenizer's own, or BOS and EOS where it ends none (most assistants')."""
    whole, bare = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    begins = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    before, after = whole[:begins], whole[begins + len(bare) :]
    if after:
        return before, after
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [] if bos is None else [bos], [eos]


def cleaned(text: str) -> str:
    """What CLIP does before it looks for words, and transformers' tokenizer does not: wrong encodings, curly quotes and
    HTML's entities are mended (openai/CLIP, clip/simple_tokenizer.py `basic_clean`)."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def open_tokenizer(source: str) -> Any:
    """A tokenizer from a directory, a name on the hub, or CLIP's own file of merges.

    Raises:
        UserError: it is none of these.
    """
    if Path(source).is_file():
        return read_merges(Path(source))
    return open_pretrained(AutoTokenizer, source, "tokenizer")


def read_merges(path: Path) -> CLIPTokenizer:
    """CLIP's tokenizer out of `bpe_simple_vocab_16e6.txt.gz`: a line that tells the version, then a merge a line.

    The vocabulary is, in this order: each byte, each byte at the end of a word, each merge, the two special tokens.

    Raises:
        UserError: the file is something else.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not CLIP's vocabulary (bpe_simple_vocab_16e6.txt.gz): {error}") from None
    merges = [tuple(line.split()) for line in lines[1 : CLIP_MERGES + 1] if line]
    if not merges or any(len(merge) != 2 for merge in merges):
        raise UserError(f"{path} is not CLIP's vocabulary (bpe_simple_vocab_16e6.txt.gz): no merge of two on each line")
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: number for number, token in enumerate(tokens)}, merges)


def refuse_other_tokenizer(tokenizer: Any, text: PreTrainedConfig, where: str) -> None:
    """Raises UserError where a tokenizer is not the one that a text encoder was made for.

    Encoders of others often have rows to spare, and special ids in their config that nobody keeps true; CLIP's has not.
    """
    problems = []
    if len(tokenizer) > text.vocab_size or (isinstance(text, CLIPTextConfig) and len(tokenizer) != text.vocab_size):
        problems.append(f"it has {len(tokenizer)} tokens, the text encoder {text.vocab_size}")
    if isinstance(text, CLIPTextConfig):
        for name in ("bos_token_id", "eos_token_id"):
            theirs, stated = getattr(tokenizer, name), getattr(text, name)
            if theirs != stated:
                problems.append(f"its {name} is {theirs}, the text encoder's {stated}")
    if problems:
        raise UserError(f"the tokenizer in {where} is not the one of its text encoder: {'; '.join(problems)}")
