"""The one function that turns a conversation into token ids and labels, for all templates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation.apply_template import write_segments
from mmchat.conversation.codec import Codec, codec_for
from mmchat.conversation.encoding import EncodedConversation, encode_segments
from mmchat.conversation.segments import DEFAULT_SLOTS, SlotTokens
from mmchat.conversation.template import Template
from mmchat.conversation.templates import get_template
from mmchat.conversation.tokenizer_template import write_with_tokenizer_template
from mmchat.conversation.turn_order import read_dialogue
from mmchat.errors import UserError


@dataclass(frozen=True)
class Rendered:
    """A sample before padding and packing; `input_ids` and `labels` are equally long."""

    input_ids: list[int]
    labels: list[int]
    """The id where it is supervised, IGNORE_INDEX elsewhere."""
    image_spans: list[tuple[int, int]]
    """Where each image's pad tokens stand, [start, stop), in the order of the images."""
    cut: int = 0
    """How many tokens `max_length` took away."""


def render(
    messages: Sequence[Mapping[str, Any]],
    template: str | Template,
    tokenizer,
    image_tokens: int | Sequence[int] = 256,
    system: str | None = None,
    max_length: int | None = None,
    slots: SlotTokens | None = None,
    *,
    add_generation_prompt: bool = False,
) -> Rendered:
    """Token ids and labels of a conversation, image slots expanded.

    Args:
        messages: the data dialect, `{"from": "human" | "gpt" | "system" | "tool", "value": str}` with `<image>`
            in a human value as a placeholder; or the chat dialect, `{"role": "user" | "assistant" | "system" |
            "tool", "content": ...}` with a str or parts `{"type": "image"}`, `{"type": "text", "text": str}`,
            where text is always text.
        template: a name of TEMPLATES, or a Template; "auto" is the tokenizer's own chat template.
        tokenizer: a fast transformers tokenizer; it is not changed.
        image_tokens: pad tokens per image: one number for all, or one per image.
        system: the system message where the messages bring none; None is the template's own, "" is none.
        max_length: at most so many tokens; what is cut is the end.
        slots: the tokens of an image; None is `<img>`, `<imgpad>`, `</img>`.
        add_generation_prompt: end with what the assistant's next words follow, for inference.

    Supervised are the words of assistant turns, unless they say `"train": false`, and what ends these turns. A
    token that holds characters of both an answer and what stands around it (an answer that begins with a line
    break after a header that ends with one) is not. Text that spells an added token of the tokenizer is text.
    Order of turns, empty answers, tools, truncation: the table in docs/guides/templates.md.

    Raises:
        UserError: malformed messages or turns out of order; nothing to learn; an image or a prompt that
            `max_length` would cut; unknown template, a slow tokenizer, one that lacks the slot or control
            tokens (or, for auto, a chat template); numbers of images and image_tokens that differ.
    """
    if isinstance(template, str):
        template = get_template(template)
    codec = codec_for(tokenizer)
    slots = slots or DEFAULT_SLOTS
    if template.from_tokenizer:
        segments = write_with_tokenizer_template(messages, tokenizer, slots, system, add_generation_prompt)
    else:
        segments = write_segments(read_dialogue(messages, template), template, codec, system, add_generation_prompt)
    encoded = encode_segments(segments, codec, slots, image_tokens)
    length = len(encoded.ids)
    if max_length is not None and length > max_length:
        if add_generation_prompt:
            raise UserError(f"the prompt has {length} tokens, max_length is {max_length}: shorten it")
        encoded = _cut(encoded, template, codec, slots, max_length)
    if not add_generation_prompt and encoded.labels.count(IGNORE_INDEX) == len(encoded.labels):
        where = f"within max_length {max_length}" if len(encoded.ids) < length else "in the conversation"
        raise UserError(f"nothing to learn: no answer to train on {where} ({len(messages)} messages, {length} tokens)")
    return Rendered(encoded.ids, encoded.labels, encoded.image_spans, length - len(encoded.ids))


def stop_tokens(template: str | Template, tokenizer, slots: SlotTokens | None = None) -> list[int]:
    """The tokens that end an answer, where generation has to stop; UserError as `render`.

    They are the added tokens that a model learns to write last: EOS for vicuna_v1, `<|im_end|>` for ChatML.
    None where an answer ends with ordinary text (plain).
    """
    exchange = [{"from": "human", "value": "<image>\na"}, {"from": "gpt", "value": "b"}]
    supervised = [label for label in render(exchange, template, tokenizer, 1, slots=slots).labels if label >= 0]
    added = {token.id for token in codec_for(tokenizer).added.values()}
    return list(takewhile(added.__contains__, reversed(supervised)))[::-1]


def _cut(
    encoded: EncodedConversation, template: Template, codec: Codec, slots: SlotTokens, max_length: int
) -> EncodedConversation:
    """The first `max_length` tokens, with whole images and the ending that the template wants even then."""
    ending_ids = codec.encode_literal(template.end) if template.end_when_cut else []
    kept = max(max_length - len(ending_ids), 0)
    if encoded.image_spans:
        last = encoded.image_spans[-1][1] + (slots.end is not None)
        if last > kept:
            raise UserError(
                f"max_length {max_length} would cut an image: the last image's slots end at token {last}; "
                "raise max_length, or use fewer images or tokens per image"
            )
    ids, labels = encoded.ids[:kept], encoded.labels[:kept]
    answering = bool(labels) and labels[-1] != IGNORE_INDEX
    ids += ending_ids
    labels += ending_ids if answering else [IGNORE_INDEX] * len(ending_ids)
    return EncodedConversation(ids, labels, encoded.image_spans)
