"""The kinds of model directories that mmchat writes, and how they are recognised. Imports no torch."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.files import read_json_object
from mmchat.hub import WEIGHTS, hub_name, resolve
from mmchat.opening import read_model_config

ADAPTER_BASE = "base.json"
"""Names the base model of a LoRA adapter. Only adapter directories have this file (`mmchat.model.lora_adapter`)."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's files in an adapter directory."""
OLD_ADAPTER = "full.safetensors"


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
KINDS = (ASSISTANT, DUAL_ENCODER, CLASSIFIER, TOWER)


def kind_of(source: str | Path) -> ModelKind | None:
    """The kind of a directory that mmchat wrote; None for anything else."""
    config = resolve(source, weights=False) / "config.json"
    found = read_json_object(config).get("model_type") if config.is_file() else None
    return next((kind for kind in KINDS if kind.model_type == found), None)


def check_adapter(source: str | Path) -> Path:
    """Check what the directory of a LoRA adapter holds, without reading weights.

    Args:
        source: The directory, that of its run, or a hub name (`resolve`).

    Returns:
        The directory.

    Raises:
        UserError: It does not exist or lacks a file.
    """
    directory = resolve(source, "adapter", part="adapter")
    if not directory.is_dir():
        raise UserError(
            f"adapter {directory} does not exist; a run with lora writes it into its run directory as adapter/, and a "
            "name on the hub is user/name or user/name@revision"
        )
    if (directory / OLD_ADAPTER).exists():
        raise UserError(
            f"{directory} holds {OLD_ADAPTER}, which an older mmchat wrote outside PEFT's format; use model/ of the "
            "same run, which is the merged model"
        )
    needed = (ADAPTER_BASE, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    if missing := [name for name in needed if not (directory / name).is_file()]:
        raise UserError(f"{directory} is not a complete adapter directory: it has no {', '.join(missing)}")
    return directory


def base_of_adapter(adapter: Path, base: str | Path | None = None) -> Path:
    """The directory of the model that an adapter was trained on.

    Args:
        adapter: What `check_adapter` returned.
        base: Directory or hub name of the model; None: as the adapter's `base.json` says.

    Raises:
        UserError: There is no such directory.
    """
    if base is not None:
        found = resolve(base)
        if not found.is_dir():
            raise UserError(
                f"--base {found} does not exist; expected the model directory that {adapter} was trained on"
            )
        return found
    named = read_json_object(adapter / ADAPTER_BASE).get("model")
    if not isinstance(named, str):
        raise UserError(f"{adapter / ADAPTER_BASE} names no model; set it with --base")
    local = (adapter / named).resolve()
    found = local if local.is_dir() or hub_name(named) is None else resolve(named)
    if not found.is_dir():
        raise UserError(
            f"{adapter / ADAPTER_BASE} names the model directory {found}, which does not exist; set it with --base"
        )
    return found
