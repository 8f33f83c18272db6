"""Encode segments to token ids and labels. The text between two images is encoded by one call."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation.expansion import encode_expansion, expansions
from mmchat.conversation.safe_tokenizer import SafeTokenizer
from mmchat.conversation.segments import (
    Control,
    Expansion,
    Image,
    Segment,
    SlotTokens,
    Text,
    strip_around_images,
)


class EncodedConversation(NamedTuple):
    """Token ids and labels of equal length."""

    ids: list[int]
    labels: list[int]
    """The id at supervised positions, IGNORE_INDEX elsewhere."""
    image_spans: list[tuple[int, int]]
    """Positions of each image's slots and markers, [start, stop)."""


def encode_segments(
    segments: list[Segment], safe: SafeTokenizer, slots: SlotTokens, image_tokens: int | Sequence[Expansion]
) -> EncodedConversation:
    """Encode segments, with the tokenizer's own BOS in front and every image expanded to its slots.

    The text between two images is encoded separately, as in LLaVA's tokenizer_image_token: with a Llama tokenizer the
    piece after an image starts with its own "▁".

    Args:
        segments: The conversation.
        safe: The tokenizer, safe against typed control tokens.
        slots: The slot tokens.
        image_tokens: The expansion of the images: one number of slots for all, or an `Expansion` per image.

    Raises:
        UserError: The tokenizer lacks a slot token, or `image_tokens` does not fit the images.
    """
    expanded = expansions(image_tokens, sum(isinstance(segment, Image) for segment in segments))
    ids = list(safe.prefix)
    spans: list[tuple[int, int]] = []
    labels = [IGNORE_INDEX] * len(ids)
    if not expanded:
        _encode_piece([segment for segment in segments if not isinstance(segment, Image)], safe, ids, labels)
        return EncodedConversation(ids, labels, spans)

    pad = safe.require(slots.pad)
    start = safe.require(slots.start) if slots.start is not None else None
    end = safe.require(slots.end) if slots.end is not None else None
    before, after = (start or pad).lstrip, (end or pad).rstrip
    if before or after:
        segments = strip_around_images(segments, before, after)

    piece: list[Text | Control] = []
    remaining = iter(expanded)
    for segment in segments:
        if not isinstance(segment, Image):
            piece.append(segment)
            continue
        _encode_piece(piece, safe, ids, labels)
        piece = []
        if start:
            ids.append(start.id)
        begin = len(ids)
        ids += encode_expansion(next(remaining), safe, slots.pad)
        spans.append((begin, len(ids)))
        if end:
            ids.append(end.id)
        labels += [IGNORE_INDEX] * (len(ids) - len(labels))
    _encode_piece(piece, safe, ids, labels)
    return EncodedConversation(ids, labels, spans)


def _encode_piece(segments: list[Text | Control], safe: SafeTokenizer, ids: list[int], labels: list[int]) -> None:
    """Append the ids and labels of the segments between two images."""
    strings: list[str] = []
    answers: list[list[int]] = []  # character spans of supervised text
    controls: list[int] = []  # character positions of supervised control tokens
    position = 0
    for segment in segments:
        if isinstance(segment, Text):
            string = segment.text
            if segment.supervised:
                if answers and answers[-1][1] == position:
                    answers[-1][1] += len(string)
                else:
                    answers.append([position, position + len(string)])
        else:
            string = safe.added[segment.token].spelling
            if segment.supervised:
                controls.append(position)
        strings.append(string)
        position += len(string)
    if not position:
        return

    encoding = safe.encode("".join(strings))
    piece_ids = encoding.ids
    piece_labels = [IGNORE_INDEX] * len(piece_ids)
    if answers or controls:
        offsets = encoding.offsets
        for start, stop in answers:
            # Only tokens entirely inside the span. A token that also covers a character of the prompt is not
            # supervised, as in LLaVA and Vary. The byte tokens of one character share its offsets, so they are in or
            # out together.
            first, last = bisect_left(offsets, (start,)), bisect_left(offsets, (stop,))
            while last > first and offsets[last - 1][1] > stop:
                last -= 1
            piece_labels[first:last] = piece_ids[first:last]
        for start in controls:
            # Found by its position: with lstrip or rstrip its offsets also cover neighbouring white space.
            index = bisect_right(offsets, (start, position)) - 1
            piece_labels[index] = piece_ids[index]
    ids += piece_ids
    labels += piece_labels
