"""What every format of a whole assistant answers."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AutoTokenizer

from mmchat.auto import MMChatConfig
from mmchat.errors import UserError
from mmchat.pretrained import open_pretrained
from mmchat.vision.checkpoint_formats.weight_files import Source


@dataclass(frozen=True)
class Assistant:
    """A foreign assistant in our words.

    config: what it is. words: its tokenizer, which has the slots. state: its weights, keys as in the state of
    `MMChatForConditionalGeneration`; foreign ones that are nobody's keep their names, and are refused later.
    """

    config: MMChatConfig
    words: Any
    state: dict[str, torch.Tensor]


class Format(Protocol):
    name: str
    """How messages call it, and what it is recognised by."""

    def recognises(self, source: Source) -> bool:
        """By what it holds, never by what it is called."""

    def open(self, source: Source, tokenizer: str | None) -> Assistant:
        """tokenizer: directory or hub name; None is the source's own.

        Raises UserError where it is of this format and yet cannot be used. Strictness is the caller's: whatever `state`
        has too many or too few is found when it is loaded."""


def stated(source: Source, *needed: str) -> dict[str, Any]:
    """The values of `config.json`.

    Raises:
        UserError: it says nothing of what shapes do not tell; lists that.
    """
    if missing := [key for key in needed if key not in source.config]:
        raise UserError(
            f"{source.path} has weights that are known here, but its config.json does not say {', '.join(missing)}; "
            "give the directory with the config.json that was published with them"
        )
    return source.config


def open_words(source: Source, tokenizer: str | None) -> Any:
    """A tokenizer that transformers knows, the source's own or another."""
    if tokenizer is None and not any((source.path / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(
            f"{source.path} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt); name the one that it "
            "was trained with, as a directory or hub name, with --tokenizer"
        )
    return open_pretrained(AutoTokenizer, tokenizer or str(source.path), "tokenizer")


def check_ids(words: Any, expected: dict[str, int | None], source: Source) -> None:
    """expected: token -> its id in the embeddings, None where that is not known.

    Raises:
        UserError: the tokenizer gives another; it is not the one that the model was trained with.
    """
    found = {token: words.convert_tokens_to_ids(token) for token in expected}
    if wrong := [token for token, number in expected.items() if number not in (None, found[token])]:
        told = ", ".join(f"{token} is {found[token]} instead of {expected[token]}" for token in wrong)
        raise UserError(
            f"the tokenizer is not the one that {source.path} was trained with: {told}; name that one (--tokenizer)"
        )
