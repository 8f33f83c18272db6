"""`import_model`: open an assistant of a foreign format as an mmchat model and processor."""

from functools import reduce
from pathlib import Path
from typing import Any

import torch

from mmchat.auto import MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversation import TEMPLATES, get_template
from mmchat.conversion.formats import FORMATS
from mmchat.conversion.formats.base import Format, ImportedAssistant, option_names, refuse_untied, with_options
from mmchat.conversion.unsupported import refuse_unsupported
from mmchat.errors import UserError
from mmchat.hub import resolve
from mmchat.model.assembly import build_processor
from mmchat.opening import opening
from mmchat.pretrained import load_state_strictly, refuse_misfit, refuse_quantized
from mmchat.vision.checkpoint_formats.weight_files import READ_BY_TRANSFORMERS, WeightFiles

PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHOWN_KEYS = 5
"""How many tensor names an error message lists."""


def import_model(
    source: str | Path, tokenizer: str | None = None, template: str | None = None, **options: Any
) -> tuple[MMChatForConditionalGeneration, MMChatProcessor]:
    """Open an assistant that another program wrote.

    Loading is strict: a missing, unexpected or misshapen weight is an error. No code in the files is run.

    Args:
        source: Directory with `config.json` and weights, as `*.safetensors` or as torch saved them; or a hub name, with
            `@revision` if wanted.
        tokenizer: Directory or hub name. None uses the tokenizer in `source`.
        template: Name of a conversation template. None is what the format says: mostly the template of mmchat that
            writes the same prompts as the source's own Jinja, or "auto", that Jinja.
        **options: Options of the format, such as the `base` and `vision` of `LlavaOriginal`.

    Returns:
        The model, in evaluation mode and in the highest precision of its files, and its processor.

    Raises:
        UserError: `source` does not exist, its format is unknown, impossible here or has no such option, or its
            weights, tokenizer or template do not fit.

    Examples:
        >>> from mmchat.conversion import import_model
        >>> model, processor = import_model("models/vary")
    """
    path = resolve(source, "model")
    if not path.is_dir():
        raise UserError(
            f"{path} is not a directory; download the model and give its folder, with config.json and weights"
        )
    files = WeightFiles(path)
    with opening(path):
        return _open(files, tokenizer, template, options)


def _open(
    files: WeightFiles, tokenizer: str | None, template: str | None, options: dict[str, Any]
) -> tuple[MMChatForConditionalGeneration, MMChatProcessor]:
    refuse_quantized(files.config, files.path)
    found = find_format(files)
    if unknown := options.keys() - option_names(found):
        raise UserError(f"{files.path} is {found.description}, which has no option {', '.join(sorted(unknown))}")
    imported = with_options(found, options).open(files, tokenizer)
    refuse_untied(imported.state, imported.config.text_config, files)
    if template is not None:
        get_template(template)  # refuses an unknown name
        imported.config.template, imported.config.system = template, None
    if imported.config.template == "auto" and imported.tokenizer.chat_template is None:
        raise UserError(
            f"{files.path} has no chat template, so how to ask is unknown; name the template that the model was "
            f"trained with, with --template: {', '.join(TEMPLATES)}"
        )
    refuse_other_shapes(imported, files)
    state = in_one_precision(imported.state, files.path)
    model = load_state_strictly(MMChatForConditionalGeneration, imported.config, state, files.path)
    return model.eval(), build_processor(model, imported.tokenizer)


def find_format(source: WeightFiles) -> Format:
    """The format of an assistant.

    Raises:
        UserError: It is unknown, or one that mmchat cannot express; says why.
    """
    for candidate in FORMATS:
        if candidate.recognises(source):
            return candidate
    refuse_unsupported(source.config, source.path)
    names = list(source.shapes)
    if not names:
        raise UserError(
            f"{source.path} holds no weights: expected {' or '.join(READ_BY_TRANSFORMERS)}, or their shards with an "
            "index; copy or download it again"
        )
    raise UserError(
        f"{source.path} does not hold an assistant of a known format: its config.json has model_type "
        f"{source.config.get('model_type')!r}, its weights are {len(names)} tensors ({', '.join(names[:SHOWN_KEYS])}"
        f"{', ...' if len(names) > SHOWN_KEYS else ''}); known formats: {'; '.join(one.description for one in FORMATS)}"
    )


def refuse_other_shapes(imported: ImportedAssistant, source: WeightFiles) -> None:
    """Raise UserError for weights of another shape before a model of the config's size is allocated."""
    with torch.device("meta"):
        expected = MMChatForConditionalGeneration(imported.config).state_dict()
    shapes = {key: (tuple(t.shape), tuple(expected[key].shape)) for key, t in imported.state.items() if key in expected}
    misshapen = [f"{key} {found} for {wanted}" for key, (found, wanted) in shapes.items() if found != wanted]
    refuse_misfit(source.path, misshapen=misshapen)


def in_one_precision(state: dict[str, torch.Tensor], where: Path) -> dict[str, torch.Tensor]:
    """The weights in the lowest precision that rounds none of them.

    transformers gives a model one dtype, that of its first weight, and would round the others to it.

    Args:
        state: Key -> tensor.
        where: Origin of the weights, for messages.

    Raises:
        UserError: A weight is no floating-point number of 16 bits or more, or is not finite.
    """
    if other := [key for key, tensor in state.items() if tensor.dtype not in PRECISIONS]:
        kind = str(state[other[0]].dtype).removeprefix("torch.")
        raise UserError(
            f"in {where} {_listed(other)} of type {kind}, and mmchat reads fp32, bf16 and fp16; if the weights are "
            "quantized, open the release that was quantized"
        )
    if damaged := [key for key, tensor in state.items() if not tensor.isfinite().all()]:
        raise UserError(
            f"in {where} {_listed(damaged)} not finite (NaN or infinity), so nothing can be computed; copy or download "
            "the file again"
        )
    precisions = {tensor.dtype for tensor in state.values()} or {torch.float32}
    precision = reduce(torch.promote_types, precisions)  # fp16 and bf16: fp32
    return {key: tensor.to(precision) for key, tensor in state.items()}


def _listed(keys: list[str]) -> str:
    """The first keys, as the subject of a sentence, with the verb."""
    shown = ", ".join(keys[:SHOWN_KEYS])
    return f"{shown}{', ...' if len(keys) > SHOWN_KEYS else ''} {'is' if len(keys) == 1 else 'are'}"
