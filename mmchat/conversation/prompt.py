"""The text that a saved chat template writes, back to the segments it means: so to the ids of `render`."""

import re
from collections.abc import Sequence
from functools import lru_cache

from mmchat.conversation.encoding import codec_for, encode_segments
from mmchat.conversation.segments import Control, Image, Segment, SlotTokens, Text
from mmchat.errors import UserError

# What transformers puts around a control token in a user's text (mark_control_tokens).
MARK_START, MARK_END = "\U000f0000", "\U000f0001"


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
            which marks what users typed; marked tokens are text. Otherwise every added token is one.

    Raises:
        UserError: a slot token outside a group, or numbers of images and image_tokens that differ; as in
            `render` for the tokenizer.
    """
    codec = codec_for(tokenizer)
    pattern = _pattern(tuple(codec.added), slots, sanitize_control_tokens)
    segments: list[Segment] = []
    position = 0
    for match in pattern.finditer(text):
        if match.start() > position:
            segments.append(Text(text[position : match.start()]))
        position = match.end()
        found = match[0]
        if found == slots.group:
            segments.append(Image())
        elif found[0] in (MARK_START, MARK_END) and sanitize_control_tokens:
            segments.append(Text(found.strip(MARK_START + MARK_END)))
        elif found in (slots.pad, slots.start, slots.end):
            raise UserError(
                f"{found!r} stands alone at character {match.start()} of the prompt: write each image as "
                f"{slots.group!r}, the processor expands it"
            )
        else:
            segments.append(Control(found))
    if position < len(text):
        segments.append(Text(text[position:]))

    bos = [Control(token) for token in codec.prefix_tokens]
    if bos and segments[: len(bos)] == bos:
        segments = segments[len(bos) :]  # encode_segments puts it in front
    return encode_segments(segments, codec, slots, image_tokens).ids


@lru_cache(maxsize=64)
def _pattern(added: tuple[str, ...], slots: SlotTokens, marks: bool) -> re.Pattern:
    # The longest first, as the tokenizers library matches its added tokens.
    tokens = "|".join(map(re.escape, sorted(added, key=len, reverse=True))) or "(?!)"
    marked = f"{MARK_START}(?:{tokens}){MARK_END}|[{MARK_START}{MARK_END}]|" if marks else ""
    return re.compile(f"{marked}{re.escape(slots.group)}|{tokens}")
