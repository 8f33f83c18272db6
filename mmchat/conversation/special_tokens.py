"""Marks around what a user typed that spells a token, so that it stays text when a Jinja has written it.

They are transformers' own (utils/chat_template_utils.py, mark_control_tokens): two private-use characters,
which are dropped from what users type.
"""

from mmchat.conversation.encoding import Codec

MARK_START, MARK_END = "\U000f0000", "\U000f0001"
_DROP = str.maketrans("", "", MARK_START + MARK_END)


def drop_marks(text: str) -> str:
    return text.translate(_DROP)


def mark_tokens(text: str, codec: Codec) -> str:
    """The text with every added token in it between marks."""
    return codec.pattern.sub(f"{MARK_START}\\g<0>{MARK_END}", drop_marks(text))
