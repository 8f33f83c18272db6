"""The interface of a foreign assistant format, and helpers that formats share."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedConfig

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversion.checks import Inputs, Sample
from mmchat.errors import UserError
from mmchat.files import read_json, write_json, write_text
from mmchat.pretrained import open_pretrained
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


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
    """A foreign format that is read.

    If it is a dataclass, its fields are options of `import_model`.
    """

    name: str
    """Short name, as `mmchat export --to` takes it."""
    description: str
    """For messages, with what the format is recognised by."""

    def recognises(self, source: WeightFiles) -> bool:
        """Whether `source` has this format, judged by its contents."""

    def open(self, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
        """Convert an assistant of this format.

        Missing and unexpected weights, and a head that should be tied, are not checked here; `import_model` does that.

        Args:
            source: Files that `recognises` accepted.
            tokenizer: Directory or hub name. None uses the tokenizer in `source`.

        Raises:
            UserError: The files have this format but cannot be used.
        """


@dataclass(frozen=True)
class Exported:
    """An assistant in a format of transformers' layout, before it is written."""

    config: dict[str, Any]
    """`config.json`, with `architectures`."""
    state: dict[str, torch.Tensor]
    """Weights under foreign keys."""
    tokenizer: Any = None
    files: dict[str, Any] = field(default_factory=dict)
    """Name -> content of other files: a str is written as text, all else as JSON. They replace the tokenizer's."""
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    """Values of `tokenizer_config.json` that differ from the tokenizer's own."""

    def write(self, directory: Path) -> None:
        """Write the files into a new directory."""
        directory.mkdir(parents=True)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(directory)
            path = directory / "tokenizer_config.json"
            write_json(path, read_json(path) | self.tokenizer_config)
        save_file(
            {key: tensor.detach().cpu().clone() for key, tensor in self.state.items()},  # tied ones share no memory
            directory / "model.safetensors",
            metadata={"format": "pt"},
        )
        for name, content in {"config.json": self.config, **self.files}.items():
            (write_text if isinstance(content, str) else write_json)(directory / name, content)


class Writable(Protocol):
    """What `Exported` does; a format of another layout returns an object of its own."""

    def write(self, directory: Path) -> None:
        """Write the files into a new directory."""


class ExportFormat(Protocol):
    """A foreign format that is written.

    If it is a dataclass, its fields are options of `export_model`.
    """

    name: str
    """Short name, as `mmchat export --to` takes it."""
    description: str
    """For messages: the class or program that opens it."""
    transformers_class: str | None
    """Class of transformers that opens it; None if none does. `--to hf` chooses among formats that have one."""

    def refusals(self, config: MMChatConfig, processor: MMChatProcessor | None = None) -> list[str]:
        """Every reason why the format cannot express an assistant, e.g. "it has 2 vision towers, expected 1".

        Args:
            config: The assistant's config.
            processor: Its processor. None judges the architecture alone.
        """

    def export(self, model: MMChatForConditionalGeneration, processor: MMChatProcessor) -> Writable:
        """Convert an assistant without `refusals`."""

    def check(self, directory: Path, samples: Sequence[Sample], processor: MMChatProcessor) -> list[str]:
        """Open what was written with the foreign program and compare it with mmchat.

        Args:
            directory: What `export` wrote.
            samples: What mmchat computes in fp32 for a few prompts.
            processor: The assistant's processor.

        Returns:
            What was compared, and what was not and why; one line each.

        Raises:
            RuntimeError: The foreign program computes something else.
        """


@runtime_checkable
class OwnSamples(Protocol):
    """A format that is compared on other samples than those of `reference_samples`."""

    def samples(self, model: MMChatForConditionalGeneration, processor: MMChatProcessor) -> list[Sample]:
        """What mmchat computes. The model is in fp32."""


@runtime_checkable
class OwnInputs(Protocol):
    """A format whose class of transformers takes other inputs than mmchat."""

    def inputs(self, sample: Sample, processor: MMChatProcessor) -> Inputs:
        """The class's inputs for a sample."""


def option_names(one: Any) -> set[str]:
    """The options of a format: the fields of a dataclass."""
    return {option.name for option in fields(one)} if is_dataclass(one) else set()


Optioned = TypeVar("Optioned")


def with_options(one: Optioned, options: dict[str, Any]) -> Optioned:
    """A format with those options set that it has."""
    own = {name: value for name, value in options.items() if name in option_names(one)}
    return replace(one, **own) if own else one


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


def directory_named(name: Any, beside: Path) -> Path | None:
    """The directory that a config names, absolute or relative to its own; None if there is none."""
    if not isinstance(name, str) or not name:
        return None
    found = beside / Path(name).expanduser()
    return found if found.is_dir() else None


def open_tokenizer(source: WeightFiles, tokenizer: str | None) -> Any:
    """Open the tokenizer in `source`, or another one that transformers can open.

    Raises:
        UserError: There is no tokenizer, or it cannot be opened.
    """
    if tokenizer is None and not any((source.path / name).exists() for name in TOKENIZER_FILES):
        raise UserError(
            f"{source.path} holds no tokenizer (expected one of {', '.join(TOKENIZER_FILES)}); name the one that the "
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


def refuse_untied(state: dict[str, torch.Tensor], language: PreTrainedConfig, source: WeightFiles) -> None:
    """Raise UserError if the config ties the head to the embeddings but the weights differ: one would be lost.

    Args:
        state: Weights under our keys.
        language: Config of the language model.
        source: For the message.
    """
    head = state.get("language_model.lm_head.weight")
    if not language.tie_word_embeddings or head is None:
        return
    names = [key for key in state if key.startswith("language_model.") and key.endswith(".embed_tokens.weight")]
    if any(head.shape != state[name].shape or not torch.equal(head, state[name]) for name in names):
        raise UserError(
            f"the head in {source.path} (lm_head.weight) differs from the embeddings, but its config ties the two; set "
            "tie_word_embeddings: false in config.json if the model was trained untied"
        )


def config_json(config: PreTrainedConfig) -> dict[str, Any]:
    """What transformers writes as `config.json`: the values that differ from the defaults."""
    return json.loads(config.to_json_string())


def tower_state(index: int, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of one tower under the assistant's keys."""
    return {f"towers.{index}.{key}": tensor for key, tensor in state.items()}
