"""The language model of a whole assistant, for a new assistant around it."""

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mmchat.auto import MMChatConfig
from mmchat.conversion.formats import FORMATS
from mmchat.conversion.formats.base import option_names
from mmchat.conversion.importing import import_model
from mmchat.hub import resolve
from mmchat.model.assembly import Language
from mmchat.model.directory import load_assistant
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles


def language_of_assistant(source: str, vision: str, tokenizer: str | None = None) -> Language | None:
    """Open the language model of an assistant, mmchat's own or one that can be imported.

    Args:
        source: Its directory or hub name.
        vision: Its tower, for formats whose files may leave it out.
        tokenizer: Directory or hub name, for formats whose files leave it out.

    Returns:
        The language model with its tokenizer; None if `source` is no assistant.

    Raises:
        UserError: It is one and cannot be opened.
    """
    files = WeightFiles(resolve(source, "language model", weights=False))
    kind = files.config.get("model_type")
    if not files.config or kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return None
    files = WeightFiles(resolve(source, "language model"))
    if kind == MMChatConfig.model_type:
        model, processor = load_assistant(files.path)
    else:
        found = next((one for one in FORMATS if one.recognises(files)), None)
        if found is None:
            return None
        options = {"vision": vision} if "vision" in option_names(found) else {}
        model, processor = import_model(files.path, tokenizer, **options)
    return Language(model.language_model, processor.tokenizer, processor.template)
