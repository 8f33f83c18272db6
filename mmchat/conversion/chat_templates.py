"""Find the conversation template here that writes what the chat template of another program writes."""

from collections.abc import Iterator
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from mmchat.conversation import SlotTokens, to_jinja
from mmchat.conversation.templates import TEMPLATES
from mmchat.errors import UserError

_QUESTION = "What is in the image?"
_TURNS = (("assistant", "A cat."), ("user", "Which colour?"))


def matching_template(tokenizer: Any, slots: SlotTokens, jinja: str, image: str) -> tuple[str, str | None]:
    """The template and system message here that write the text of a foreign chat template.

    Compared are the prompts of a first and of a second question, and a finished conversation, about one image. A line
    break that the foreign template itself writes after an image may be part of the text here.

    Args:
        tokenizer: The foreign tokenizer, fast, with the slot tokens.
        slots: The slot tokens of the foreign processor.
        jinja: The foreign chat template.
        image: What it writes for an image, which the foreign processor replaces by the slots.

    Returns:
        Name and system message, as `MMChatConfig` has them; "auto" if no other template writes this text.
    """
    foreign = [_write(tokenizer, jinja, turns) for turns in range(1, 4)]
    expected = [None if text is None else text.replace(image, slots.group) for text in foreign]
    for name, system in _candidates():
        try:
            candidate = to_jinja(name, slots, tokenizer, system)
        except UserError:  # it writes a token that this tokenizer lacks
            continue
        for line_break in ("", "\n"):
            if [_write(tokenizer, candidate, turns, line_break) for turns in range(1, 4)] == expected:
                return name, system
    return "auto", None


def _candidates() -> Iterator[tuple[str, str | None]]:
    for name, template in TEMPLATES.items():
        if not template.from_tokenizer:
            yield name, None
            if template.default_system:
                yield name, ""


def _write(tokenizer: Any, jinja: str, turns: int, line_break: str = "") -> str | None:
    """The text of the first turns, without BOS; None if the template refuses them."""
    content = [{"type": "image"}, {"type": "text", "text": line_break + _QUESTION}]
    others = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in _TURNS]
    messages = [{"role": "user", "content": content}, *others][:turns]
    prompt = messages[-1]["role"] == "user"
    try:
        rendered: Any = render_jinja_template(  # annotated as str, returns (texts, spans)
            [messages], chat_template=jinja, add_generation_prompt=prompt, **tokenizer.special_tokens_map
        )
    except TemplateError:
        return None
    return rendered[0][0].removeprefix(tokenizer.bos_token or "")
