"""The language model inside the assistant classes of transformers: a base model and a head without bias.

These classes build `AutoModel` of the text config and put their own `lm_head` on it, where mmchat builds
`AutoModelForCausalLM`. The two agree if the latter is no more than that.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from mmchat.errors import UserError
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles

LANGUAGE_KEYS = (
    ("*.rotary_emb.inv_freq", None),
    ("language_model.model.*", "language_model.model.*"),
    ("model.language_model.*", "language_model.model.*"),
    ("language_model.lm_head.*", "language_model.lm_head.*"),
    ("lm_head.*", "language_model.lm_head.*"),
)
"""Pairs for a `KeyMap`: transformers 4's names, which are written because vLLM opens them, and transformers 5's."""
HEAD = "language_model.lm_head.weight"
LOGIT_SCALES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Settings by which some language models change their logits after the head (Gemma 2, Cohere, Granite, Falcon-H1)."""


def language_reasons(text: PreTrainedConfig) -> list[str]:
    """Why an assistant class of transformers would compute other logits with a language model."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(text)
    found = f"its language model is a {text.model_type}"
    if [name for name, _ in model.named_children()] != ["model", "lm_head"] or model.lm_head.bias is not None:
        return [f"{found}, expected one that is a base model and a head without bias"]
    widths = model.get_input_embeddings().embedding_dim, model.lm_head.in_features
    if set(widths) != {text.hidden_size}:
        return [f"{found} whose embeddings have width {widths[0]}, expected its hidden size {text.hidden_size}"]
    scales = [name for name in LOGIT_SCALES if getattr(text, name, None) not in (None, 1)]
    return [f"{found} that changes its logits after the head ({', '.join(scales)})"] if scales else []


def read_language(config: PreTrainedConfig, source: WeightFiles) -> PreTrainedConfig:
    """The text config of an assistant class, tied as the whole assistant is.

    If config.json does not say whether the whole assistant is tied, it is tied only if there is no head. Some configs
    say so in their text config alone, others leave it to the default of the class, which is true for InternVL.

    Raises:
        UserError: mmchat would compute other logits with this language model.
    """
    text = config.text_config
    if reasons := language_reasons(text):
        raise UserError(f"the assistant in {source.path} cannot be opened: {'; '.join(reasons)}")
    has_head = any(key.endswith("lm_head.weight") for key in source.shapes)
    stated = source.config.get("tie_word_embeddings")
    may_be_tied = config.tie_word_embeddings or text.tie_word_embeddings
    text.tie_word_embeddings = bool(stated) or (may_be_tied and not has_head)
    return text


def can_tie(text: PreTrainedConfig) -> bool:
    """Whether an assistant class of transformers ties the head to the embeddings: they must be `embed_tokens`."""
    return text.model_type != "opt"


def export_language(text: PreTrainedConfig, state: dict[str, torch.Tensor]) -> tuple[dict[str, Any], bool]:
    """The values of a text config, and whether the assistant is tied; `state` then loses the head."""
    values, tied = text.to_dict(), text.tie_word_embeddings and can_tie(text)
    if tied:
        state.pop(HEAD, None)
    return values | {"tie_word_embeddings": tied}, tied
