"""Parse the text that a saved chat template writes back to segments, so that it gives the ids of `render`."""

import re
from collections.abc import Sequence
from functools import lru_cache

from mmchat.conversation.encoding import encode_segments
from mmchat.conversation.safe_tokenizer import SafeTokenizer, safe_tokenizer_for
from mmchat.conversation.segments import Control, Expansion, Image, Segment, SlotTokens, Spans, Text, parse_segments
from mmchat.conversation.special_tokens import MARK_END, MARK_START
from mmchat.errors import UserError


def encode_prompt(
    text: str,
    tokenizer,
    slots: SlotTokens,
    image_tokens: int | Sequence[Expansion],
    *,
    sanitize_control_tokens: bool = False,
) -> list[int]:
    """Token ids of a prompt in which each image is one group: start, one pad, end.

    For text from the Jinja of `to_jinja` these are exactly the ids of `render`. The tokenizer's BOS is added unless the
    text starts with it.

    Args:
        text: The prompt.
        tokenizer: A fast transformers tokenizer.
        slots: The slot tokens.
        image_tokens: As in `render`.
        sanitize_control_tokens: The text came from `apply_chat_template(..., sanitize_control_tokens=True)`, which
            marks the control tokens that users typed; marked tokens are text. Otherwise every added token is a control
            token, except those that the chat template marks itself.

    Raises:
        UserError: A slot token is outside a group, the numbers of images and `image_tokens` differ, or the tokenizer
            is unsuitable (as in `render`).
    """
    safe = safe_tokenizer_for(tokenizer)
    segments = parse_prompt(text, safe, slots, sanitized=sanitize_control_tokens)
    return encode_segments(segments, safe, slots, image_tokens).ids


def count_images(text: str, tokenizer, slots: SlotTokens, *, sanitize_control_tokens: bool = False) -> int:
    """Count the images in a prompt. Arguments and errors are those of `encode_prompt`."""
    segments = parse_prompt(text, safe_tokenizer_for(tokenizer), slots, sanitized=sanitize_control_tokens)
    return sum(isinstance(segment, Image) for segment in segments)


def parse_prompt(
    text: str, safe: SafeTokenizer, slots: SlotTokens, *, sanitized: bool, supervised: Spans = ()
) -> list[Segment]:
    """Segments of a text that a chat template wrote, without the BOS that `encode_segments` adds.

    Args:
        text: The text.
        safe: The tokenizer, safe against typed control tokens.
        slots: The slot tokens.
        sanitized: Typed control tokens are marked, so a lone mark is a leftover of one and is dropped.
        supervised: Character spans to supervise.

    Raises:
        UserError: A slot token is outside a group.
    """

    def to_segment(match: re.Match, supervised: bool) -> Segment:
        found = match[0]
        if found == slots.group:
            return Image()
        if found[0] in (MARK_START, MARK_END):
            return Text(found.strip(MARK_START + MARK_END), supervised)
        if found in (slots.pad, slots.start, slots.end):
            raise UserError(
                f"{found!r} stands alone at character {match.start()} of the prompt: write each image as "
                f"{slots.group!r}; the processor expands it"
            )
        return Control(found, supervised)

    segments = parse_segments(text, _pattern(safe.pattern.pattern, slots, sanitized), supervised, to_segment)
    bos = safe.prefix_tokens
    first_tokens = [segment.token for segment in segments[: len(bos)] if isinstance(segment, Control)]
    return segments[len(bos) :] if first_tokens == bos else segments


@lru_cache(maxsize=64)
def _pattern(tokens: str, slots: SlotTokens, lone_marks: bool) -> re.Pattern:
    lone = f"[{MARK_START}{MARK_END}]|" if lone_marks else ""
    return re.compile(f"{MARK_START}(?:{tokens}){MARK_END}|{lone}{re.escape(slots.group)}|{tokens}")
