"""The kinds of finding, and how bad each is."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Kind:
    """severity: an error cannot or must not be trained on; a warning stays in, and is told.

    title: what people call it. meaning: what is wrong, or what becomes of it, in one sentence.
    """

    severity: Severity
    title: str
    meaning: str


class Finding(NamedTuple):
    """Something about one record. image: which of its images, from 0; -1 is the record itself."""

    kind: str
    reason: str
    image: int = -1


KINDS: dict[str, Kind] = {
    "malformed_record": Kind("error", "malformed record", "No layout that we read, or a key of the wrong type."),
    "invalid_json": Kind("error", "invalid JSON", "The record cannot be decoded."),
    "not_utf8": Kind("error", "not UTF-8", "The bytes are text in another encoding, or no text."),
    "lone_surrogate": Kind("error", "lone surrogate", "Half a character, which no tokenizer can encode."),
    "path_outside_root": Kind("error", "path outside the root", "An image path or link leaves the image root."),
    "missing_image": Kind("error", "missing image", "The image's file is not there or cannot be read."),
    "not_fetched": Kind("error", "address not allowed", "The image would have to be fetched (--allow-http)."),
    "undecodable_image": Kind("error", "undecodable image", "The bytes are no image that we can read."),
    "truncated_image": Kind("error", "truncated image", "It begins like an image, the rest is cut off or damaged."),
    "decompression_bomb": Kind("error", "decompression bomb", "It claims more pixels than we accept; not decoded."),
    "slot_mismatch": Kind("error", "slots and images differ", "There are more or fewer <image> than images."),
    "role_order": Kind("error", "turns out of order", "An unknown speaker, or turns that no template can write."),
    "nothing_to_learn": Kind("error", "nothing to learn", "There is no answer, or none that may be trained on."),
    "empty_answers": Kind("error", "all answers empty", "Only the end of an answer would be learned."),
    "template_refusal": Kind("error", "refused by the template", "The model's template cannot write this record."),
    "over_length": Kind(
        "error", "over length", "Cut to the allowed length nothing could be learned, or an image breaks."
    ),
    "leak": Kind("error", "leak of the evaluation set", "The evaluation set holds the same image or conversation."),
    "exact_duplicate": Kind("error", "exact duplicate", "The same images and the same words as an earlier record."),
    "cut_text": Kind("warning", "cut to the length", "Its end is beyond the allowed length and will not be learned."),
    "empty_answer": Kind("warning", "some answers empty", "An answer is empty, others are not; its end is learned."),
    "exif_rotation": Kind("warning", "turned by EXIF", "We turn the image as its camera says; other tools do not."),
    "extreme_aspect": Kind("warning", "extreme aspect", "Squashed or cropped to a square, little of it is left."),
    "tiny_image": Kind("warning", "tiny image", "A side has hardly any pixels."),
    "huge_image": Kind("warning", "huge image", "Decoding it takes long and much memory in every epoch."),
    "control_tokens": Kind(
        "warning", "control tokens in text", "We encode them as text; other tools take them for real."
    ),
    "replacement_character": Kind("warning", "replacement character", "U+FFFD: a character was lost in a conversion."),
    "mojibake": Kind("warning", "mojibake", "UTF-8 that was read in another encoding and saved so."),
    "near_leak": Kind("warning", "near the evaluation set", "An image looks like one of the evaluation set."),
    "near_duplicate": Kind("warning", "near duplicate", "An image looks like one of an earlier record."),
}


def is_error(kind: str) -> bool:
    return KINDS[kind].severity == "error"
