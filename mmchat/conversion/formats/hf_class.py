"""Write an assistant as a class of transformers: its config, its weights and the files of its processor."""

from typing import Any

import torch

from mmchat.auto import MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversion.chat_templates import plain_chat_template
from mmchat.conversion.formats.base import Exported, config_json
from mmchat.conversion.formats.hf_language import export_language
from mmchat.conversion.key_map import KeyMap


def export_class(
    name: str,
    config_class: Any,
    keys: KeyMap,
    model: MMChatForConditionalGeneration,
    processor: MMChatProcessor,
    values: dict[str, Any],
    processor_values: dict[str, Any],
    *,
    state: dict[str, torch.Tensor] | None = None,
    tokenizer: Any = None,
    chat_template: str | None = None,
    tokenizer_config: dict[str, Any] | None = None,
) -> Exported:
    """Convert an assistant to a class of transformers.

    Args:
        name: The class.
        config_class: Its config class.
        keys: The names of its weights.
        model: The assistant.
        processor: Its processor.
        values: Values of the config besides those of the language model.
        processor_values: `processor_config.json`, with `processor_class` and the image processor.
        state: Weights under our keys; None: the model's. Changed in place.
        tokenizer: Tokenizer to write; None: the processor's.
        chat_template: The Jinja; None: the processor's own, for programs that encode what it writes as one string.
        tokenizer_config: Values of `tokenizer_config.json` that differ from the tokenizer's own.
    """
    state = model.state_dict() if state is None else state
    text, tied = export_language(model.config.text_config, state)
    config = config_class(
        **values,
        text_config=text,
        tie_word_embeddings=tied,
        architectures=[name],
        dtype=str(model.dtype).removeprefix("torch."),
    )
    files = {
        "processor_config.json": processor_values,
        "chat_template.jinja": plain_chat_template(processor) if chat_template is None else chat_template,
        "generation_config.json": model.generation_config.to_diff_dict(),
    }
    return Exported(
        config_json(config),
        keys.export_state(state),
        processor.tokenizer if tokenizer is None else tokenizer,
        files,
        tokenizer_config or {"processor_class": processor_values["processor_class"]},
    )
