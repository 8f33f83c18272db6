"""Escaping of special tokens: marks keep a typed token text after a Jinja chat template has written it.

The marks are those of transformers (utils/chat_template_utils.py, mark_control_tokens): two private-use characters
around the token. They are dropped from what users type.
"""

from mmchat.conversation.safe_tokenizer import SafeTokenizer

MARK_START, MARK_END = "\U000f0000", "\U000f0001"
_DROP = str.maketrans("", "", MARK_START + MARK_END)


def drop_marks(text: str) -> str:
    """Remove both mark characters from a text."""
    return text.translate(_DROP)


def mark_tokens(text: str, safe: SafeTokenizer) -> str:
    """Put marks around every added token in a text."""
    return safe.pattern.sub(f"{MARK_START}\\g<0>{MARK_END}", drop_marks(text))
