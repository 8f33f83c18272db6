"""The text that a saved chat template writes, back to the segments it means: so to the ids of `render`."""

import re
from collections.abc import Sequence
from functools import lru_cache

from mmchat.conversation.encoding import Codec, codec_for, encode_segments
from mmchat.conversation.segments import Control, Image, Segment, SlotTokens, Spans, Text, parse_segments
from mmchat.conversation.special_tokens import MARK_END, MARK_START
from mmchat.errors import UserError


def encode_prompt(
    text: str,
    tokenizer,
    slots: SlotTokens,
    image_tokens: int | Sequence[int],
    *,
    sanitize_control_tokens: bool = False,
) -> list[int]:
    """The ids of a prompt in which each image is one group: start, one pad, end.

    For text from the Jinja of `to_jinja` these are exactly the ids of `render`. The tokenizer's BOS is added
    unless the text starts with it.

    Args:
        image_tokens: pad tokens per image: one number for all, or one per image.
        sanitize_control_tokens: the text came from `apply_chat_template(..., sanitize_control_tokens=True)`,
            which marks what users typed; marked tokens are text. Otherwise every added token is one, but for
            those that the chat template marks itself.

    Raises:
        UserError: a slot token outside a group, or numbers of images and image_tokens that differ; as in
            `render` for the tokenizer.
    """
    codec = codec_for(tokenizer)
    segments = parse_prompt(text, codec, slots, sanitized=sanitize_control_tokens)
    return encode_segments(segments, codec, slots, image_tokens).ids


def count_images(text: str, tokenizer, slots: SlotTokens, *, sanitize_control_tokens: bool = False) -> int:
    """How many images `encode_prompt` finds in a prompt; arguments and errors as there."""
    segments = parse_prompt(text, codec_for(tokenizer), slots, sanitized=sanitize_control_tokens)
    return sum(isinstance(segment, Image) for segment in segments)


def parse_prompt(
    text: str, codec: Codec, slots: SlotTokens, *, sanitized: bool, supervised: Spans = ()
) -> list[Segment]:
    """The segments of a text that a chat template wrote, without the BOS that encode_segments puts in front.

    sanitized: users' text was marked, so a mark that stands alone is left over from one and is dropped.
    supervised: character spans to be learned.

    Raises:
        UserError: a slot token outside a group.
    """

    def read(match: re.Match, supervised: bool) -> Segment:
        found = match[0]
        if found == slots.group:
            return Image()
        if found[0] in (MARK_START, MARK_END):
            return Text(found.strip(MARK_START + MARK_END), supervised)
        if found in (slots.pad, slots.start, slots.end):
            raise UserError(
                f"{found!r} stands alone at character {match.start()} of the prompt: write each image as "
                f"{slots.group!r}, the processor expands it"
            )
        return Control(found, supervised)

    segments = parse_segments(text, _pattern(codec.pattern.pattern, slots, sanitized), supervised, read)
    bos = codec.prefix_tokens
    written = [segment.token for segment in segments[: len(bos)] if isinstance(segment, Control)]
    return segments[len(bos) :] if written == bos else segments


@lru_cache(maxsize=64)
def _pattern(tokens: str, slots: SlotTokens, lone_marks: bool) -> re.Pattern:
    lone = f"[{MARK_START}{MARK_END}]|" if lone_marks else ""
    return re.compile(f"{MARK_START}(?:{tokens}){MARK_END}|{lone}{re.escape(slots.group)}|{tokens}")
