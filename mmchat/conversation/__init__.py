"""Words: messages become token ids and labels, born together, and the saved Jinja gives the same ids.

messages (messages.py) -> turns in an order that the Template can write (dialogue.py; template.py, templates.py)
    -> typed segments (segments.py, writing.py; auto.py where the tokenizer's own Jinja writes)
    -> ids and labels (encoding.py), cut to a length (render.py)
chat template text (jinja.py) -> the same segments -> the same ids (prompt.py; marks.py keeps typed tokens text)

docs/guides/templates.md: the templates, and what becomes of every order of turns.
"""

from mmchat.conversation.encoding import control_tokens
from mmchat.conversation.jinja import to_jinja
from mmchat.conversation.messages import Turn, merge_text_parts, parse_messages
from mmchat.conversation.prompt import count_images, encode_prompt
from mmchat.conversation.render import Rendered, render, stop_tokens
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
