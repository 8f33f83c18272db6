"""Conversations: messages become token ids and labels in one pass. The saved Jinja chat template gives the same ids.

`render` runs these steps:
    messages.py         messages of two dialects -> turns
    turn_order.py       turns -> an order that the template supports
    apply_template.py   turns -> typed segments: text, control tokens, images (segments.py)
    encoding.py         segments -> token ids and labels (safe_tokenizer.py: typed text gives no control token)

`to_jinja` (jinja.py) writes the chat template that is saved with a model. `encode_prompt` (prompt.py) parses the text
that it writes back to the same segments, so to the same ids. special_tokens.py marks typed control tokens in between.
The template `auto` is the tokenizer's own Jinja (tokenizer_template.py, tokenizer_jinja.py).

docs/guides/templates.md lists the templates and how each order of turns is handled.
"""

from mmchat.conversation.jinja import to_jinja
from mmchat.conversation.messages import Turn, merge_text_parts, parse_messages
from mmchat.conversation.prompt import count_images, encode_prompt
from mmchat.conversation.render import Rendered, render, stop_tokens
from mmchat.conversation.safe_tokenizer import control_tokens
from mmchat.conversation.segments import DEFAULT_SLOTS, SlotTokens
from mmchat.conversation.template import Template
from mmchat.conversation.templates import TEMPLATES, get_template

__all__ = [
    "DEFAULT_SLOTS",
    "TEMPLATES",
    "Rendered",
    "SlotTokens",
    "Template",
    "Turn",
    "control_tokens",
    "count_images",
    "encode_prompt",
    "get_template",
    "merge_text_parts",
    "parse_messages",
    "render",
    "stop_tokens",
    "to_jinja",
]
