"""Token ids and labels split into readable pieces: control tokens, image slots, whole characters."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation import DEFAULT_SLOTS, Rendered, SlotTokens, control_tokens
from mmchat.data.preview.printable import mark_spaces, printable

Kind = Literal["text", "control", "image", "broken"]
LONGEST_CHARACTER = 16
"""Maximum tokens joined to form whole characters. A character has up to four bytes; a token may hold parts of two."""


@dataclass(frozen=True)
class Piece:
    """The fewest tokens that are readable: a control token, slots of an image in a row, or whole characters.

    Attributes:
        kind: "image" is slots of an image in a row. "broken" is a token of a character whose other tokens are missing
            (cut off by `max_length`).
        text: What to show, not yet `printable`.
        ids: The tokens.
        supervised: Whether they are supervised.
        start: Position of the first token.
    """

    kind: Kind
    text: str
    ids: tuple[int, ...]
    supervised: bool
    start: int


def read_pieces(rendered: Rendered, tokenizer: Any, slots: SlotTokens = DEFAULT_SLOTS) -> list[Piece]:
    """Split ids and labels into pieces, in order. The concatenated ids are `rendered.input_ids`."""
    ids, labels = rendered.input_ids, rendered.labels
    slot_id = tokenizer.convert_tokens_to_ids(slots.pad)
    spans = enumerate(rendered.image_spans, 1)
    image_of = {at: number for number, span in spans for at in range(*span) if ids[at] == slot_id}
    control = set(tokenizer.convert_tokens_to_ids(control_tokens(tokenizer)))

    def group_key(at: int) -> tuple[Kind, int, bool]:
        supervised = labels[at] != IGNORE_INDEX
        if at in image_of:
            return "image", image_of[at], supervised
        return ("control", at, supervised) if ids[at] in control else ("text", 0, supervised)

    pieces: list[Piece] = []
    for (kind, number, supervised), places in groupby(range(len(ids)), group_key):
        start, *others = places
        parts: Iterable[tuple[Kind, str, int]]
        group = ids[start : start + 1 + len(others)]
        if kind == "image":
            parts = [(kind, f"image {number}: {len(group)} slots", len(group))]
        elif kind == "control":
            parts = [(kind, tokenizer.convert_ids_to_tokens(group[0]), 1)]
        else:
            parts = _characters(group, tokenizer)
        for part, text, length in parts:
            pieces.append(Piece(part, text, tuple(ids[start : start + length]), supervised, start))
            start += length
    return pieces


def _characters(ids: Sequence[int], tokenizer: Any) -> Iterator[tuple[Kind, str, int]]:
    """Kind, text and number of tokens of the shortest groups that form whole characters."""
    # Decoded after a letter, because decoders strip the first space of a text.
    letter = tokenizer("a", add_special_tokens=False).input_ids[-1:]
    before = tokenizer.decode(letter)
    start = 0
    while start < len(ids):
        for stop in range(start + 1, min(start + LONGEST_CHARACTER, len(ids)) + 1):
            group = list(ids[start:stop])
            text = tokenizer.decode(letter + group, clean_up_tokenization_spaces=False)
            # U+FFFD stands for bytes that form no character, unless the text really contains it.
            if "\ufffd" not in text or tokenizer(text, add_special_tokens=False).input_ids[-len(group) :] == group:
                yield "text", text.removeprefix(before), stop - start
                break
        else:
            stop = start + 1
            yield "broken", tokenizer.convert_ids_to_tokens(ids[start]), 1
        start = stop


def runs(pieces: Sequence[Piece]) -> Iterator[tuple[str, bool, list[tuple[Piece, str]]]]:
    """Group adjacent text pieces with the same label: kind, supervised, and (piece, printable text) of each.

    Control tokens and images form groups of their own.
    """
    for (kind, supervised, _), group in groupby(
        pieces, lambda piece: (piece.kind, piece.supervised, -1 if piece.kind == "text" else piece.start)
    ):
        members = list(group)
        spaced = mark_spaces("".join(piece.text for piece in members))
        texts = []
        for piece in members:
            texts.append(printable(spaced[: len(piece.text)], "↵\n"))
            spaced = spaced[len(piece.text) :]
        yield kind, supervised, list(zip(members, texts, strict=True))
