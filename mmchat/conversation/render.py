"""Render a conversation: token ids and labels together, for all templates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation.apply_template import write_segments
from mmchat.conversation.encoding import encode_segments
from mmchat.conversation.messages import Turn, parse_messages
from mmchat.conversation.safe_tokenizer import safe_tokenizer_for
from mmchat.conversation.segments import DEFAULT_SLOTS, Expansion, SlotTokens
from mmchat.conversation.template import Template
from mmchat.conversation.templates import get_template
from mmchat.conversation.tokenizer_template import write_with_tokenizer_template
from mmchat.conversation.truncation import truncate
from mmchat.conversation.turn_order import to_dialogue
from mmchat.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rendered:
    """A tokenized conversation, before padding and packing."""

    input_ids: list[int]
    labels: list[int]
    """As long as `input_ids`: the id if the position is supervised, else IGNORE_INDEX."""
    image_spans: list[tuple[int, int]]
    """Positions [start, stop) of each image's slots and markers, in the order of the images."""
    cut: int = 0
    """Number of tokens removed by `max_length`."""


def render(
    messages: Sequence[Mapping[str, Any]] | Sequence[Turn],
    template: str | Template,
    tokenizer: "PreTrainedTokenizerBase",
    image_tokens: int | Sequence[Expansion] = 256,
    system: str | None = None,
    max_length: int | None = None,
    slots: SlotTokens | None = None,
    *,
    add_generation_prompt: bool = False,
) -> Rendered:
    """Token ids and labels of a conversation, with image slots expanded.

    Supervised are the text and the end of assistant turns, unless marked `"train": false`. A token that spans an
    answer and the text around it (an answer that begins with a line break, after a header that ends with one) is not
    supervised. Typed text that spells an added token of the tokenizer stays text. docs/guides/templates.md lists what
    happens to every order of turns, to empty answers, to tools and on truncation.

    Args:
        messages: The data dialect, `{"from": "human" | "gpt" | "system" | "tool", "value": str}` with `<image>` in a
            human value as a placeholder; or the chat dialect, `{"role": "user" | "assistant" | "system" | "tool",
            "content": ...}` with a str or parts `{"type": "image"}`, `{"type": "text", "text": str}`, in which text
            is always text; or the turns that `parse_messages` made of either.
        template: A name of TEMPLATES, or a Template. "auto" is the tokenizer's own chat template.
        tokenizer: A fast transformers tokenizer. It is not changed.
        image_tokens: Number of slots (pad tokens) of an image: one for all images, or one per image. For an image with
            markers a sequence of numbers of slots and of literal texts, such as (64, "\n", 64); they are never
            supervised.
        system: System message if the messages have none. None is the template's default, "" is no system message.
        max_length: Maximum number of tokens. The end is cut off.
        slots: The tokens of an image. None is `<img>`, `<imgpad>`, `</img>`.
        add_generation_prompt: End with the header that the assistant's next answer follows, for inference.

    Raises:
        UserError: Malformed messages or turns out of order; nothing to learn; `max_length` would cut an image or a
            prompt; an unknown template; a slow tokenizer, or one without the slot or control tokens (for auto,
            without a chat template); numbers of images and of image_tokens that differ.
    """
    if isinstance(template, str):
        template = get_template(template)
    safe = safe_tokenizer_for(tokenizer)
    slots = slots or DEFAULT_SLOTS
    turns = _turns(messages)
    if template.from_tokenizer:
        segments = write_with_tokenizer_template(turns, tokenizer, slots, system, add_generation_prompt)
    else:
        segments = write_segments(to_dialogue(turns, template), template, safe, system, add_generation_prompt)
    encoded = encode_segments(segments, safe, slots, image_tokens)
    length = len(encoded.ids)
    if max_length is not None and length > max_length:
        if add_generation_prompt:
            raise UserError(f"the prompt has {length} tokens, max_length is {max_length}: shorten it")
        encoded = truncate(encoded, template, safe, slots, max_length)
    if not add_generation_prompt and encoded.labels.count(IGNORE_INDEX) == len(encoded.labels):
        where = f"within max_length {max_length}" if len(encoded.ids) < length else "in the conversation"
        raise UserError(f"nothing to learn: no answer to train on {where} ({len(turns)} messages, {length} tokens)")
    return Rendered(encoded.ids, encoded.labels, encoded.image_spans, length - len(encoded.ids))


def stop_tokens(
    template: str | Template, tokenizer: "PreTrainedTokenizerBase", slots: SlotTokens | None = None
) -> list[int]:
    """The tokens that end an answer, at which generation stops.

    These are the added tokens that a model learns to write last: EOS for vicuna_v1, `<|im_end|>` for ChatML. Empty if
    an answer ends with ordinary text (plain).

    Raises:
        UserError: As `render`.
    """
    exchange = [Turn("user", (None, "\na")), Turn("assistant", ("b",), train=True)]
    supervised = [label for label in render(exchange, template, tokenizer, 1, slots=slots).labels if label >= 0]
    added = {token.id for token in safe_tokenizer_for(tokenizer).added.values()}
    return list(takewhile(added.__contains__, reversed(supervised)))[::-1]


def _turns(messages: Any) -> Sequence[Turn]:
    parsed = isinstance(messages, list | tuple) and bool(messages) and isinstance(messages[0], Turn)
    return messages if parsed else parse_messages(messages)
