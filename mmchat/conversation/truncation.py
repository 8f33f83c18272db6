"""Truncation: a conversation that is longer than `max_length` loses its end."""

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation.encoding import EncodedConversation
from mmchat.conversation.safe_tokenizer import SafeTokenizer
from mmchat.conversation.segments import SlotTokens
from mmchat.conversation.template import Template
from mmchat.errors import UserError


def truncate(
    encoded: EncodedConversation, template: Template, safe: SafeTokenizer, slots: SlotTokens, max_length: int
) -> EncodedConversation:
    """The first `max_length` tokens, images intact, with the template's end if it has `end_when_cut`.

    Raises:
        UserError: an image's slots would be cut.
    """
    ending_ids = safe.encode_literal(template.end) if template.end_when_cut else []
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
