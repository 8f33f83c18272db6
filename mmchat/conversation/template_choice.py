"""The conversation template that fits a language model, chosen from its tokenizer and its type.

What the tokenizer's own chat template writes is the best evidence: a named template that writes the same tokens fits.
Without a chat template, the type of the language model and the tokens that the tokenizer has decide.
"""

from typing import NamedTuple

from mmchat.conversation.render import render
from mmchat.conversation.safe_tokenizer import safe_tokenizer_for
from mmchat.conversation.template import Template
from mmchat.conversation.templates import TEMPLATES, get_template
from mmchat.errors import UserError

COMMON = "vicuna_v1"
"""For a tokenizer without chat tokens: it writes words and the tokenizer's own end token."""
CANDIDATES = ("chatml", "qwen_2_5", "qwen_3", "qwen_2", "llama_3", "gemma", "phi", "mistral", "llama_2", COMMON)
"""Templates of language models. The others belong to assistants that were published with images."""
OF_TYPE = {
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "llama": "llama_3",
    "mistral": "mistral",
    "phi3": "phi",
    "qwen2": "qwen_2_5",
    "qwen2_moe": "qwen_2_5",
    "qwen3": "qwen_3",
    "qwen3_moe": "qwen_3",
}
"""transformers' `model_type` -> the template of its chat models, for which the tokenizer must have the tokens."""

_EXCHANGE = (
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
)
_SYSTEM = {"role": "system", "content": "Four."}


class TemplateChoice(NamedTuple):
    """A template's name, and why it was chosen, to follow "template NAME: "."""

    name: str
    reason: str


def choose_template(tokenizer, model_type: str) -> TemplateChoice:
    """Choose the conversation template of a language model.

    Args:
        tokenizer: A fast transformers tokenizer.
        model_type: The language model's type, as its `config.json` has it.

    Raises:
        UserError: The tokenizer is a slow one, or no template fits because it has no end token.
    """
    preferred = OF_TYPE.get(model_type, COMMON)
    fitting = [
        name for name in dict.fromkeys((preferred, *CANDIDATES)) if not missing_tokens(TEMPLATES[name], tokenizer)
    ]
    if tokenizer.chat_template:
        return _like_chat_template(fitting, tokenizer)
    if preferred in fitting and preferred != COMMON:
        return TemplateChoice(preferred, f"the language model is of type {model_type}{_which_has(preferred)}")
    if "chatml" in fitting:
        return TemplateChoice("chatml", f"the tokenizer has no chat template{_which_has('chatml', ', but has')}")
    check_template(COMMON, tokenizer)
    return TemplateChoice(COMMON, "the tokenizer has neither a chat template nor chat tokens")


def check_template(name: str, tokenizer) -> None:
    """Refuse a template whose control tokens are not single tokens of a tokenizer.

    Raises:
        UserError: The template is unknown, or the tokenizer lacks a token; names the templates that fit.
    """
    template = get_template(name)
    if not (missing := missing_tokens(template, tokenizer)):
        return
    fitting = [other for other in CANDIDATES if not missing_tokens(TEMPLATES[other], tokenizer)]
    instead = f"templates that fit: {', '.join(fitting)}" if fitting else "no template fits this tokenizer"
    raise UserError(
        f"template {name} needs {', '.join(missing)}, which the tokenizer does not have as single tokens; {instead}"
    )


def missing_tokens(template: Template, tokenizer) -> list[str]:
    """What a template needs and the tokenizer has not as a single token that text cannot give."""
    safe = safe_tokenizer_for(tokenizer)
    missing = [token for token in template.control if token not in safe.added or safe.added[token].typable]
    ends = any("{eos}" in text for text in (*template.answer, template.end))
    return [*missing, *(["eos_token"] if ends and tokenizer.eos_token not in safe.added else [])]


def _like_chat_template(fitting: list[str], tokenizer) -> TemplateChoice:
    for name in fitting:
        if _agrees(name, tokenizer, _EXCHANGE):
            return TemplateChoice(name, "it writes what the tokenizer's own chat template writes")
    for name in fitting:
        if _agrees(name, tokenizer, (_SYSTEM, *_EXCHANGE)):
            reason = "it writes what the tokenizer's own chat template writes, but for the default system message"
            return TemplateChoice(name, reason)
    for name in fitting:
        if len(TEMPLATES[name].control) > 2:  # unlike ChatML's two, these belong to one family
            return TemplateChoice(name, f"the tokenizer has its tokens, {', '.join(TEMPLATES[name].control)}")
    if _shows_answers(tokenizer):
        return TemplateChoice("auto", "the tokenizer's own chat template, which no named template equals")
    if not fitting:
        check_template(COMMON, tokenizer)  # says what the tokenizer lacks
    for name in ("chatml", COMMON):
        if name in fitting:
            reason = (
                "the tokenizer's own chat template, which no named template equals, does not show where answers are"
            )
            return TemplateChoice(name, reason)
    return TemplateChoice(fitting[0], "the tokenizer has its tokens")


def _agrees(name: str, tokenizer, messages: tuple[dict[str, str], ...]) -> bool:
    """Whether a named template and the tokenizer's own write the same prompt for a conversation without images."""
    try:
        own, ours = (render(messages, one, tokenizer, add_generation_prompt=True).input_ids for one in ("auto", name))
    except UserError:  # such as a chat template without system messages
        return False
    return own == ours


def _shows_answers(tokenizer) -> bool:
    """Whether labels can be derived from the tokenizer's own chat template."""
    try:
        render((*_EXCHANGE, _EXCHANGE[1]), "auto", tokenizer)
    except UserError:
        return False
    return True


def _which_has(name: str, words: str = ", and the tokenizer has") -> str:
    control = TEMPLATES[name].control
    return f"{words} {' and '.join(control)}" if control else ""
