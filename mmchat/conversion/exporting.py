"""`export_model`: write a model in a foreign format, opened and compared before it is called done."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmchat.auto import MMChatConfig, MMChatProcessor
from mmchat.contrastive.dual_encoder import DualEncoderConfig
from mmchat.contrastive.export import export_dual_encoder
from mmchat.conversion.card import write_card
from mmchat.conversion.checks import reference_samples
from mmchat.conversion.formats import TARGETS, ExportFormat
from mmchat.conversion.formats.base import OwnInputs, OwnSamples, option_names, with_options
from mmchat.conversion.vllm.check import compare_with_vllm, vllm_refusals
from mmchat.conversion.vllm.vllm_process import require_python
from mmchat.errors import UserError
from mmchat.files import staged_directory
from mmchat.hub import hub_repos, resolve
from mmchat.model.directory import load_assistant
from mmchat.opening import CONFIG, read_model_config

HF = "hf"
"""The target that stands for the one class of transformers that an assistant's shape is."""


VLLM = "vllm"
"""The other check: a vLLM that is installed."""


def export_model(
    model_dir: str | Path, to: str, out: str | Path, check: str | None = None, **options: Any
) -> list[str]:
    """Write an assistant, or a dual encoder (`export_dual_encoder`), in a foreign format.

    Nothing is written if the format cannot express the model. What is written is opened by the foreign program and
    compared before it is renamed to `out`.

    Args:
        model_dir: Directory of an assistant or of a dual encoder.
        to: Name of the format: "hf" or one of `TARGETS`.
        out: Directory to write; replaced if it exists.
        check: "vllm" compares with vLLM, too (`vllm_process`).
        **options: Options of the format.

    Returns:
        What was written and compared, one line each.

    Raises:
        UserError: The directory or the format is unknown, or the format cannot express the assistant: lists every
            reason, and the nearest format that can. Or vLLM is not installed, or does not open what was written.
        RuntimeError: The foreign program computes something else than mmchat. `out` is unchanged.

    Examples:
        >>> from mmchat.conversion import export_model
        >>> export_model("runs/assistant/model", "hf", "exported")
    """
    candidates = find_targets(to, options)
    vllm_python = None if check is None else find_vllm(check, candidates)
    directory = resolve(model_dir)
    if is_dual_encoder(directory):
        if to != HF or options or check:
            raise UserError(f"{directory} is a dual encoder, which is exported with `--to {HF}` and no options")
        return export_dual_encoder(model_dir, Path(out))
    model, processor = load_assistant(directory)
    model.config.base_models = hub_repos(model_dir) or model.config.base_models
    target = choose_target(candidates, model.config, processor)
    if vllm_python and (reasons := vllm_refusals(model.config, target.transformers_class)):
        raise UserError(f"vLLM cannot open this assistant: {'; '.join(reasons)}; leave out `--check {VLLM}`")
    with staged_directory(Path(out)) as aside:
        target.export(model, processor).write(aside)
        write_card(aside, model, target, directory)
        take_samples = target.samples if isinstance(target, OwnSamples) else reference_samples
        samples = take_samples(model.float(), processor)
        del model  # the foreign program needs the memory
        compared = target.check(aside, samples, processor)
        if vllm_python and target.transformers_class:
            own = [partial(target.inputs, processor=processor)] if isinstance(target, OwnInputs) else []
            compared += compare_with_vllm(vllm_python, aside, samples, processor, target.transformers_class, *own)
    return [target.description, *compared]


def find_vllm(check: str, candidates: Sequence[ExportFormat]) -> str:
    """The interpreter for a check with vLLM.

    Raises:
        UserError: There is no such check, vLLM is not installed, or it opens none of the formats.
    """
    if check != VLLM:
        raise UserError(f"there is no check {check!r}; expected {VLLM}")
    if not any(target.transformers_class for target in candidates):
        raise UserError(f"`--check {VLLM}` is for what vLLM opens: `--to {HF}`, or a class of transformers by its name")
    return require_python()


def is_dual_encoder(directory: Path) -> bool:
    """Whether a directory holds a dual encoder that mmchat wrote."""
    is_model = (directory / CONFIG).is_file()
    return is_model and read_model_config(directory).get("model_type") == DualEncoderConfig.model_type


def find_targets(to: str, options: dict[str, Any]) -> list[ExportFormat]:
    """The formats that a name stands for, with their options set.

    Raises:
        UserError: There is no such format, or none of them has an option.
    """
    named = [one for one in TARGETS if to in (one.name, HF if one.transformers_class else None)]
    if not named:
        raise UserError(
            f"there is no export format {to!r}; known: {', '.join([HF, *(target.name for target in TARGETS)])}"
        )
    for option in options:
        if not any(option in option_names(target) for target in named):
            raise UserError(f"export to {to} has no option {option!r}")
    return [with_options(target, options) for target in named]


def choose_target(
    candidates: Sequence[ExportFormat], config: MMChatConfig, processor: MMChatProcessor | None = None
) -> ExportFormat:
    """The first format that can express an assistant.

    Raises:
        UserError: None can. Lists every reason of the nearest one, and another format that can.
    """
    reasons = {target.name: target.refusals(config, processor) for target in candidates}
    for target in candidates:
        if not reasons[target.name]:
            return target
    nearest = min(candidates, key=lambda target: len(reasons[target.name]))
    others = [name for name in reasons if name != nearest.name]
    message = f"{nearest.description} cannot express this assistant: {'; '.join(reasons[nearest.name])}"
    if others:
        message += f" (nor can {', '.join(others)}: name one with --to for its reasons)"
    able = [one.name for one in TARGETS if one.name not in reasons and not one.refusals(config, processor)]
    raise UserError(message + (f"; `--to {able[0]}` can" if able else "; no other format of mmchat can"))
