"""`import_model`: open an assistant of a foreign format as an mmchat model and processor."""

from pathlib import Path
from typing import Any

from mmchat.auto import MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversation import TEMPLATES, get_template
from mmchat.conversion.formats import FORMATS
from mmchat.conversion.formats.base import Format, option_names, refuse_untied, with_options
from mmchat.conversion.unsupported import refuse_unsupported
from mmchat.errors import UserError
from mmchat.model.assembly import build_processor
from mmchat.pretrained import load_state_strictly, resolve
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles

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
        The model, in evaluation mode and in the precision of its files, and its processor.

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
    model = load_state_strictly(MMChatForConditionalGeneration, imported.config, imported.state, files.path)
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
    raise UserError(
        f"{source.path} does not hold an assistant of a known format: its config.json has model_type "
        f"{source.config.get('model_type')!r}, its weights are {len(names)} tensors ({', '.join(names[:SHOWN_KEYS])}"
        f"{', ...' if len(names) > SHOWN_KEYS else ''}); known formats: {'; '.join(one.description for one in FORMATS)}"
    )
