"""The interface of a foreign assistant format, and helpers that formats share."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AutoTokenizer

from mmchat.auto import MMChatConfig
from mmchat.errors import UserError
from mmchat.pretrained import open_pretrained
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles


@dataclass(frozen=True)
class ImportedAssistant:
    """A foreign assistant, converted."""

    config: MMChatConfig
    tokenizer: Any
    """Has the slot tokens already."""
    state: dict[str, torch.Tensor]
    """Weights under the keys of `MMChatForConditionalGeneration`. Unknown keys keep their foreign names, so that the
    strict load refuses them."""


class Format(Protocol):
    """One foreign format."""

    name: str
    """Name for messages, with what the format is recognised by."""

    def recognises(self, source: WeightFiles) -> bool:
        """Whether `source` has this format, judged by its contents."""

    def open(self, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
        """Convert an assistant of this format.

        Missing and unexpected weights are not checked here; the strict load of `state` does that.

        Args:
            source: Files that `recognises` accepted.
            tokenizer: Directory or hub name. None uses the tokenizer in `source`.

        Raises:
            UserError: The files have this format but cannot be used.
        """


def require_config(source: WeightFiles, *keys: str) -> dict[str, Any]:
    """The values of `config.json`, with `keys` present.

    Raises:
        UserError: A key is missing. These are values that tensor shapes do not give.
    """
    if missing := [key for key in keys if key not in source.config]:
        raise UserError(
            f"{source.path} has weights of a known format, but its config.json does not say {', '.join(missing)}; "
            "give the directory with the config.json that was published with them"
        )
    return source.config


def open_tokenizer(source: WeightFiles, tokenizer: str | None) -> Any:
    """Open the tokenizer in `source`, or another one that transformers can open.

    Raises:
        UserError: There is no tokenizer, or it cannot be opened.
    """
    if tokenizer is None and not any((source.path / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(
            f"{source.path} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt); name the one that the "
            "model was trained with, a directory or hub name, with --tokenizer"
        )
    return open_pretrained(AutoTokenizer, tokenizer or str(source.path), "tokenizer")


def check_token_ids(tokenizer: Any, expected: dict[str, int | None], source: WeightFiles) -> None:
    """Compare token ids with those that the embeddings were trained with.

    Args:
        tokenizer: The tokenizer to check.
        expected: Token -> id, or None if the id is unknown.
        source: For the message.

    Raises:
        UserError: An id differs, so this is not the tokenizer that the model was trained with.
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in expected}
    if wrong := [token for token, expected_id in expected.items() if expected_id not in (None, ids[token])]:
        differences = ", ".join(f"{token} is {ids[token]} instead of {expected[token]}" for token in wrong)
        raise UserError(
            f"this tokenizer is not the one that {source.path} was trained with: {differences}; name that one with "
            "--tokenizer"
        )


def tower_state(index: int, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of one tower under the assistant's keys."""
    return {f"towers.{index}.{key}": tensor for key, tensor in state.items()}
