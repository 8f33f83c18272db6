"""The token ids of an image: its slots, and the markers between them."""

from collections.abc import Sequence

from mmchat.conversation.safe_tokenizer import SafeTokenizer
from mmchat.conversation.segments import Expansion
from mmchat.errors import UserError, counted


def expansions(image_tokens: int | Sequence[Expansion], images: int) -> list[Expansion]:
    """The expansion of every image.

    Args:
        image_tokens: One number of slots for all images, or an expansion per image.
        images: Number of images in the messages.

    Raises:
        UserError: The number of expansions differs from that of the images, or one has no slot.
    """
    given = [image_tokens] * images if isinstance(image_tokens, int) else image_tokens
    found = [one if isinstance(one, Sequence) else int(one) for one in given]
    if len(found) != images:
        raise UserError(
            f"the messages hold {counted(images, 'image')}, image_tokens is given for {len(found)}: "
            "give one number per image"
        )
    if any(_fewest(one) < 1 for one in found):
        raise UserError(f"image_tokens must be at least 1 for every image, found {found}")
    return found


def encode_expansion(expansion: Expansion, safe: SafeTokenizer, pad: str) -> list[int]:
    """Token ids of an image.

    Markers between slots are encoded in one call, with a slot on the sides where they touch one, so that they get the
    ids that the tokenizer gives to the whole text (a line break after a slot is not at the beginning of a text).

    Args:
        expansion: Slots and markers.
        safe: The tokenizer, safe against typed control tokens.
        pad: The slot token.
    """
    pad_id = safe.require(pad).id
    ids: list[int] = []
    marker = ""
    for part in [expansion] if isinstance(expansion, int) else expansion:
        if isinstance(part, str):
            marker += part
            continue
        if marker:
            ids += _marker_ids(marker, safe, pad, after_slot=bool(ids), before_slot=True)
            marker = ""
        ids += [pad_id] * part
    return ids + _marker_ids(marker, safe, pad, after_slot=True, before_slot=False) if marker else ids


def _marker_ids(text: str, safe: SafeTokenizer, pad: str, after_slot: bool, before_slot: bool) -> list[int]:
    ids = safe.encode_literal(pad * after_slot + text + pad * before_slot)
    return ids[after_slot : len(ids) - before_slot]


def _fewest(expansion: Expansion) -> int:
    """The smallest number of slots in a row, 0 without slots."""
    counts = [expansion] if isinstance(expansion, int) else [part for part in expansion if isinstance(part, int)]
    return min(counts, default=0)
