"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) through PEFT: add, save, load and merge.

Variants are PEFT's own: DoRA (Liu et al. 2024, arXiv:2402.09353) and rsLoRA (Kalajdzievski 2023, arXiv:2312.03732).

An adapter directory holds PEFT's files (`adapter_config.json`, `adapter_model.safetensors`), the processor, a reference
to the base model (`base.json`) and a README.md. Modules that were trained in full are PEFT's `modules_to_save`, so PEFT
and transformers open the whole adapter without mmchat's help.
"""

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mmchat.auto import MMChatForConditionalGeneration, MMChatProcessor
from mmchat.errors import UserError
from mmchat.files import read_json, read_json_object, write_json, write_text
from mmchat.hub import hub_name, resolve
from mmchat.model.card import adapter_card
from mmchat.model.directory import LOGITS_TOLERANCE, comparison_logits, load_assistant
from mmchat.model_kinds import ADAPTER_BASE, ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_of_adapter, check_adapter
from mmchat.opening import opening, weight_bytes
from mmchat.pretrained import save_verified
from mmchat.vision import Fit

if TYPE_CHECKING:
    from peft import PeftModel

PREFIX = "base_model.model."
"""PEFT's name of the adapted model, before every key of its weights."""
MODULE_NAME = re.compile(r"[\w.]+")
REGULAR_EXPRESSIONS = ("layers_pattern", "target_parameters")
"""Keys of PEFT's config that hold patterns and that adapters of mmchat leave empty."""


@dataclass(frozen=True)
class LoraShape:
    """LoRA of a layer: its update is alpha / rank * B @ A, where A has `rank` rows; with rsLoRA alpha / sqrt(rank)."""

    rank: int
    alpha: int


def add_adapter(
    model: MMChatForConditionalGeneration,
    layers: dict[str, LoraShape],
    dropout: float,
    dora: bool = False,
    rslora: bool = False,
) -> "PeftModel":
    """Add LoRA to linear layers, with an update of zero, and freeze everything else.

    Args:
        model: The model. It is changed in place; train and call it as before.
        layers: Name of a linear layer -> its LoRA.
        dropout: Dropout of the LoRA inputs.
        dora: Whether the norm of each output's weights is trained as well; W + update has that norm.
        rslora: Whether updates are scaled by alpha / sqrt(rank).

    Returns:
        PEFT's wrapper of `model`, which saves and merges.
    """
    from peft import LoraConfig, get_peft_model

    common = next(iter(layers.values()))
    others = {name: shape for name, shape in layers.items() if shape != common}
    config = LoraConfig(
        r=common.rank,
        lora_alpha=common.alpha,
        lora_dropout=dropout,
        target_modules=list(layers),
        rank_pattern={name: shape.rank for name, shape in others.items()},
        alpha_pattern={name: shape.alpha for name, shape in others.items()},
        use_dora=dora,
        use_rslora=rslora,
    )
    adapter = get_peft_model(model, config)
    # PEFT shortens a long list of names to suffixes and matches patterns by them, so check the result.
    ranks = {name: layer.r["default"] for name, layer in _lora_layers(model).items()}
    assert ranks == {name: shape.rank for name, shape in layers.items()}
    return adapter


def lora_layer_types() -> tuple[type[Any], ...]:
    """PEFT's class of layers with LoRA, for `isinstance`; none if nothing has imported PEFT, for then none has LoRA.

    PEFT is imported where an adapter is made or opened. That takes about a second.
    """
    lora = sys.modules.get("peft.tuners.lora")
    return () if lora is None else (lora.LoraLayer,)


def _lora_layers(model: torch.nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, lora_layer_types())}


def adapter_parameters(model: torch.nn.Module) -> set[int]:
    """The `id` of every LoRA parameter of a model, and of DoRA's norms."""
    parts = [getattr(layer, name) for layer in _lora_layers(model).values() for name in layer.adapter_layer_names]
    return {id(parameter) for part in parts for parameter in part.parameters()}


def modules_to_save(model: torch.nn.Module) -> list[str]:
    """Names of the modules that hold the parameters trained in full, none inside another.

    Both names of tied embeddings are listed: PEFT copies a module, which unties it.

    Args:
        model: A model with LoRA, whose parameters require gradients as they are trained.

    Raises:
        UserError: Such a module contains layers with LoRA, which PEFT's format cannot express.
    """
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad} - adapter_parameters(model)
    named = model.named_parameters(remove_duplicate=False)
    owners = sorted({name.rpartition(".")[0] for name, parameter in named if id(parameter) in trained})
    outermost: list[str] = []
    for owner in owners:
        if not any(owner.startswith(f"{outer}.") for outer in outermost):
            outermost.append(owner)
    for layer in _lora_layers(model):
        if outer := next((outer for outer in outermost if layer.startswith(f"{outer}.")), None):
            raise UserError(
                f"trainable: {outer} has parameters of its own that are trained in full, and {layer} inside it has "
                f"LoRA; an adapter cannot hold both. Freeze {outer}, or train {layer} in full"
            )
    return outermost


@dataclass
class _AdapterFiles:
    """What an adapter directory holds beyond the files that PEFT writes for LoRA alone.

    Attributes:
        modules: Name of a module that was trained in full -> its tensors.
        base: The content of `base.json`.
    """

    modules: dict[str, dict[str, torch.Tensor]]
    base: dict[str, Any]

    def save_pretrained(self, directory: Path) -> None:
        """Add them to PEFT's files in a directory."""
        full = {f"{PREFIX}{name}.{key}": value for name, state in self.modules.items() for key, value in state.items()}
        save_file(load_file(directory / ADAPTER_WEIGHTS) | full, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        # PEFT writes where the base lay on this machine.
        changed = {"modules_to_save": list(self.modules) or None, "base_model_name_or_path": None}
        write_json(directory / ADAPTER_CONFIG, read_json(directory / ADAPTER_CONFIG) | changed)
        write_json(directory / ADAPTER_BASE, self.base)
        write_text(directory / "README.md", adapter_card(self.base, list(self.modules)))


def save_adapter(
    adapter: "PeftModel", processor: MMChatProcessor, directory: Path, base: str | Path, fit: Fit | None = None
) -> None:
    """Write an adapter directory, then load it onto `base` again and compare logits.

    Args:
        adapter: The adapted model.
        processor: Its processor.
        directory: Where to write.
        base: The model that was adapted: its directory or hub name.
        fit: How images were fitted during training. None: as in `base`.

    Raises:
        RuntimeError: The reloaded adapter gives other logits for the comparison inputs.
    """
    model = adapter.get_base_model()
    # Cloned: ZeRO keeps parameters as views of one tensor, which safetensors refuses to write.
    modules = {
        name: {key: tensor.detach().cpu().clone() for key, tensor in model.get_submodule(name).state_dict().items()}
        for name in modules_to_save(model)
    }
    found = resolve(base)
    # A path is relative to the adapter directory, so that both can be moved together.
    named = str(base) if hub_name(base) else Path(os.path.relpath(found.resolve(), directory.resolve())).as_posix()
    files = _AdapterFiles(modules, {"model": named, "sha256": _weight_hashes(found), "fit": fit})
    save_verified(
        adapter,
        [processor, files],
        directory,
        lambda path: load_adapter(path, dtype="float32")[0],
        lambda model: [comparison_logits(model, processor)],
        LOGITS_TOLERANCE,
    )


def load_adapter(
    source: str | Path, base: str | Path | None = None, dtype: str = "auto"
) -> tuple["PeftModel", MMChatProcessor]:
    """Load an adapter onto its base model.

    Args:
        source: The adapter directory, or a hub name (`mmchat.hub.resolve`).
        base: The model that the adapter was trained on: its directory or hub name. None: as `base.json` says.
        dtype: Data type of the base weights, as torch names it. "auto" keeps that of the files.

    Returns:
        The adapted model, in evaluation mode, and its processor, which fits images as in training.

    Raises:
        UserError: A file is missing or damaged, the base is missing or is another model, or weights do not fit.
    """
    from peft import PeftModel, get_peft_model_state_dict

    directory = check_adapter(source)
    description = _read_description(directory)
    base = base_of_adapter(directory, base)
    if _weight_hashes(base) != description["sha256"]:
        raise UserError(
            f"the weights in {base} are not those that {directory} was trained on; give that model with --base"
        )
    model, processor = load_assistant(base, dtype, fit=description["fit"])
    found = _names(directory / ADAPTER_WEIGHTS)
    with opening(directory, held=weight_bytes(directory) + weight_bytes(base)):
        try:
            adapter = PeftModel.from_pretrained(model, directory)
            wrong = found ^ set(get_peft_model_state_dict(adapter, save_embedding_layers=False))
        except KeyError as error:  # a weight of a module trained in full
            wrong = {str(error.args[0])}
        except RuntimeError as error:
            raise UserError(f"the weights in {directory} do not fit {base}: {error}") from None
    if wrong:
        names = ", ".join(sorted(wrong))
        raise UserError(f"the weights in {directory} do not fit {base}: missing or unexpected are {names}")
    return adapter.eval(), processor


def _read_description(directory: Path) -> dict[str, Any]:
    """The values of `base.json`, with those of `adapter_config.json` checked that could be programs.

    Raises:
        UserError: A file is damaged, or the adapter's config has patterns or other values that `save_adapter` does not
            write.
    """
    description = read_json_object(directory / ADAPTER_BASE)
    hashes = description.get("sha256")
    if not (isinstance(description.get("model"), str) and isinstance(hashes, dict) and "fit" in description):
        raise UserError(f"{directory / ADAPTER_BASE} lacks the model, its sha256 or the fit; copy the adapter again")
    config = read_json_object(directory / ADAPTER_CONFIG)
    names = [config.get("target_modules"), config.get("modules_to_save") or [], config.get("exclude_modules") or []]
    patterns = [config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    if not all(isinstance(one, list) for one in names) or not all(isinstance(one, dict) for one in patterns):
        where = directory / ADAPTER_CONFIG
        raise UserError(f"{where} has no list of target_modules, or one of another kind; copy it again")
    # PEFT takes these for regular expressions, which may take for ever.
    unusual = [name for one in (*names, *patterns) for name in one if not MODULE_NAME.fullmatch(str(name))]
    others = [key for key in REGULAR_EXPRESSIONS if config.get(key)]
    if unusual or others:
        raise UserError(
            f"{directory / ADAPTER_CONFIG} names modules by patterns "
            f"({', '.join(map(str, [*unusual, *others]))[:80]}), which mmchat does not write; list their names"
        )
    return description


def merge(adapter: "PeftModel", processor: MMChatProcessor) -> tuple[MMChatForConditionalGeneration, float]:
    """Merge LoRA into the weights.

    Args:
        adapter: The adapted model. It cannot be used afterwards.
        processor: Its processor.

    Returns:
        The model without adapters, and the largest absolute change of logits, which is due to rounding.
    """
    adapter.eval()
    before = comparison_logits(adapter, processor)
    tied = adapter.get_base_model().config.tie_word_embeddings
    merged = adapter.merge_and_unload()
    # PEFT unties embeddings that were trained in full.
    merged.config.tie_word_embeddings = tied
    merged.tie_weights()
    return merged, (comparison_logits(merged, processor) - before).abs().max().item()


def _names(path: Path) -> set[str]:
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise UserError(f"the weights in {path} are damaged or cut off: {error}") from None


def _weight_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of each weight file. LoRA on another base model would be wrong without an error."""
    hashes = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
