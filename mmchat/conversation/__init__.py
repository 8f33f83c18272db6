"""Words: messages become token ids and labels, born together, and the saved Jinja gives the same ids.

messages (messages.py) -> typed segments (segments.py, following a Template of templates.py)
    -> ids and labels (encoding.py), cut to a length (render.py)
chat template text (jinja.py) -> the same segments -> the same ids (prompt.py)
"""

from mmchat.conversation.encoding import control_tokens
from mmchat.conversation.jinja import to_jinja
from mmchat.conversation.messages import merge_text_parts
from mmchat.conversation.prompt import encode_prompt
from mmchat.conversation.render import Rendered, render
from mmchat.conversation.segments import SlotTokens
from mmchat.conversation.templates import TEMPLATES, Template, get_template

__all__ = [
    "TEMPLATES",
    "Rendered",
    "SlotTokens",
    "Template",
    "control_tokens",
    "encode_prompt",
    "get_template",
    "merge_text_parts",
    "render",
    "to_jinja",
]
