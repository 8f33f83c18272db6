"""The kinds of model directories that mmchat writes, and how they are recognised. Imports no torch."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.opening import read_model_config
from mmchat.pretrained import WEIGHTS, resolve

ADAPTER_BASE = "base.json"
"""Names the base model of a LoRA adapter. Only adapter directories have this file (`mmchat.model.lora_adapter`)."""


@dataclass(frozen=True)
class ModelKind:
    """What identifies a model directory.

    Attributes:
        model_type: Of its config.json.
        description: What messages call it, with an article.
        remedy: What messages advise if the directory is missing or of another kind.
        files: Files that opening it needs besides the config and the weights.
        no_weights_hint: What messages add if there are no weights.
        remedy_of: Advice about another kind: the directory or name, and the values of its config -> advice, or None
            for `remedy`.
    """

    model_type: str
    description: str
    remedy: str
    files: tuple[str, ...] = ()
    no_weights_hint: str = ""
    remedy_of: Callable[[str, dict[str, Any]], str | None] = lambda source, config: None

    def check(self, source: str | Path, *files: str) -> Path:
        """Check what a directory holds without reading weights.

        Args:
            source: The directory, or a hub name (`resolve`).
            files: Names or patterns that must exist in it.

        Returns:
            The directory.

        Raises:
            UserError: It does not exist, holds another kind of model or an adapter, or lacks a file.
        """
        directory = resolve(source, weights=WEIGHTS in files)
        if not directory.is_dir():
            raise UserError(f"model directory {directory} does not exist; {self.remedy}")
        if (directory / ADAPTER_BASE).exists():
            raise UserError(
                f"{directory} holds a LoRA adapter, not a whole model; `mmchat merge {directory} --out DIR` makes one"
            )
        config = read_model_config(directory)
        if (found := config.get("model_type")) != self.model_type:
            raise UserError(
                f"{source} holds a model of type {found!r}, expected {self.description} ({self.model_type}); "
                f"{self.remedy_of(str(source), config) or self.remedy}"
            )
        missing = [name for name in files if not any(directory.glob(name))]
        if missing == [WEIGHTS]:
            raise UserError(f"{directory} holds no weights ({WEIGHTS}){self.no_weights_hint}")
        if missing:
            raise UserError(
                f"{directory} is incomplete: it has no {', '.join(missing)}; copy or write the directory again"
            )
        return directory

    def check_complete(self, source: str | Path) -> Path:
        """As `check`, for a directory that will be opened with its weights."""
        return self.check(source, WEIGHTS, *self.files)


def _how_to_make_an_assistant(source: str, config: dict[str, Any]) -> str | None:
    """The command that makes an assistant of a model of others."""
    name, architecture = shlex.quote(source), str(config.get("architectures")).strip("[]'")
    if {"vision_config", "mm_vision_tower"} & config.keys():
        if architecture.endswith("Model"):
            return f"it is a dual encoder: `mmchat init --language MODEL --vision {name} --out DIR` takes its tower"
        return f"`mmchat import {name} DIR` converts an assistant of others, or says why it cannot"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return f"it is a language model: `mmchat init --language {name} --vision TOWER --out DIR` makes an assistant"
    return None


ASSISTANT = ModelKind(
    "mmchat",
    "an assistant",
    "make one with `mmchat init`, or train first",
    ("processor_config.json", "tokenizer.json"),
    ". `mmchat init --without-weights` makes such a directory for planning: run it without that option. If the "
    "directory is a copy, copy it again",
    _how_to_make_an_assistant,
)
DUAL_ENCODER = ModelKind("mmchat_clip", "a dual encoder", "`mmchat clip convert` makes one of what others publish")
CLASSIFIER = ModelKind("mmchat_classifier", "a classifier", "make one around any tower with `mmchat vision init`")
TOWER = ModelKind("mmchat_tower", "a vision tower", "write one with `mmchat.vision.directory.save_tower`")
