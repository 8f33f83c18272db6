"""`import_model`: a foreign assistant, whatever its format, as a model and processor of ours."""

from pathlib import Path

from mmchat.auto import MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversion.formats.base import Format
from mmchat.conversion.formats.vary import VaryOPT, VaryQwen
from mmchat.errors import UserError
from mmchat.model.assembly import with_words
from mmchat.pretrained import fill_strictly
from mmchat.vision.checkpoint_formats.weight_files import Source

FORMATS: tuple[Format, ...] = (VaryOPT(), VaryQwen())
"""A new one is a file here and a line above."""
SHOWN_KEYS = 5


def import_model(
    source: str | Path, tokenizer: str | None = None
) -> tuple[MMChatForConditionalGeneration, MMChatProcessor]:
    """Open an assistant that another program wrote, strictly: each of its weights has its place, and none is missing.

    Args:
        source: directory with config.json and weights, as *.safetensors or as torch wrote them (no code is run).
        tokenizer: directory or hub name; None is the source's own.

    Returns:
        The model, in evaluation mode, its weights in the precision they came in; and its processor.

    Raises:
        UserError: no such directory, no format that is known, weights or a tokenizer that do not fit.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        raise UserError(f"{path} is no directory; give one with config.json and weights, downloaded before")
    opened = Source(path)
    assistant = _recognised(opened).open(opened, tokenizer)
    model = fill_strictly(MMChatForConditionalGeneration, assistant.config, assistant.state, path)
    return model.eval(), with_words(model, assistant.words)


def _recognised(source: Source) -> Format:
    for one in FORMATS:
        if one.recognises(source):
            return one
    names = list(source.shapes)
    raise UserError(
        f"{source.path} holds no assistant known here: it has config.json of model_type "
        f"{source.config.get('model_type')!r} and {len(names)} tensors ({', '.join(names[:SHOWN_KEYS])}"
        f"{', ...' if len(names) > SHOWN_KEYS else ''}); looked for {'; '.join(one.name for one in FORMATS)}"
    )
