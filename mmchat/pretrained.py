"""transformers' `from_pretrained`, strictly: what does not open or fit is for the user to mend, in one message."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mmchat.errors import UserError
from mmchat.files import read_json, replace_directory


def load_strictly(model_class: Any, directory: Path, others: tuple[str, ...] = (), dtype: str = "auto") -> Any:
    """A model with every weight that its config asks for, and none left over.

    Args:
        others: beginnings of keys that belong to another model in the same files.
        dtype: of the weights in memory, as torch names it; auto: as they were written.

    Raises:
        UserError: no safetensors, damaged ones, or weights missing, left over or of another shape; lists them.
    """
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{directory} holds no *.safetensors, so no weights that could be opened safely")
    try:
        return _filled(model_class, directory, directory, others, use_safetensors=True, dtype=dtype)
    except SafetensorError as error:
        raise UserError(f"the weights in {directory} are damaged or cut off: {error}") from None


def load_state_strictly(model_class: Any, config: Any, state: dict[str, Any], where: Path) -> Any:
    """A model of this config with these weights, name -> tensor, as strictly; `where` they are from.

    Raises:
        UserError: weights are missing, left over or of another shape; lists them.
    """
    return _filled(model_class, None, where, (), config=config, state_dict=state, dtype="auto")


def _filled(model_class: Any, source: Path | None, where: Path, others: tuple[str, ...], **how: Any) -> Any:
    # Weights of another shape are to stand in the report, and be refused below, rather than raise here.
    model, report = model_class.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **how)
    problems = {
        "missing": sorted(report["missing_keys"]),
        "left over": sorted(key for key in report["unexpected_keys"] if not key.startswith(others or "\0")),
        "of another shape": sorted(map(str, report["mismatched_keys"])),
    }
    if any(problems.values()):
        found = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in problems.items() if keys)
        raise UserError(f"the weights in {where} do not fit its config: {found}")
    return model


def check_model_type(source: str | Path, model_type: str, what: str, remedy: str) -> Path:
    """The directory, if what mmchat saved there is of this type; `what` and `remedy` are for the message.

    Raises:
        UserError: it holds something else.
    """
    directory = Path(source)
    found = read_json(directory / "config.json").get("model_type")
    if found != model_type:
        raise UserError(f"{directory} holds a {found!r}, expected {what} ({model_type}); {remedy}")
    return directory


def open_pretrained(auto_class: Any, source: str, what: str) -> Any:
    """`auto_class.from_pretrained(source)` of a directory or hub name; `what` names it in the message.

    Raises:
        UserError: it cannot be opened; in one line.
    """
    try:
        return auto_class.from_pretrained(source)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{what} {source!r} is neither a directory with one nor a name that the hub gave: {reason}"
        ) from error


def save_verified(
    model: Any,
    others: Sequence[Any],
    directory: Path,
    reload: Callable[[Path], Any],
    compute: Callable[[Any], Sequence[Any]],
    tolerance: float,
) -> None:
    """Write model and others aside, reload the model strictly, compare what both compute, rename into place.

    Args:
        others: what belongs in the same directory (processor, tokenizer).
        compute: model -> tensors, without gradients, on an input of its own.
        tolerance: largest absolute difference between them.

    Raises:
        RuntimeError: the reloaded model computes something else.
    """
    aside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    # By the names of its modules, not those of older transformers: single towers and frozen weights are looked up so.
    model.save_pretrained(aside, save_original_format=False)
    for part in others:
        part.save_pretrained(aside)
    reloaded = reload(aside).to(model.device)
    _attend_alike(model, reloaded)
    was_training = model.training
    model.eval()
    pairs = zip(compute(model), compute(reloaded.eval()), strict=True)
    differences = [(mine - read_back).abs().max().item() for mine, read_back in pairs]
    model.train(was_training)
    if wrong := [difference for difference in differences if not difference <= tolerance]:  # NaN is wrong, too
        raise RuntimeError(
            f"the model written to {aside} differs from the one in memory by {wrong[0]:g} in its outputs"
        )
    replace_directory(aside, directory)


def _attend_alike(model: Any, copy: Any) -> None:
    """Rounded weights show which kernel computed attention, and that is not what is to be compared."""
    from transformers import PreTrainedModel

    for name, part in copy.named_modules():
        if name and isinstance(part, PreTrainedModel):
            part.set_attn_implementation(model.get_submodule(name).config._attn_implementation)
