"""The kinds of finding and their severity."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "left out"]


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        severity: A record with an error is excluded from the clean index; a warning is only reported. What is left out
            is excluded and no error: a run leaves it out by itself, and counts it.
        title: Short name.
        meaning: What is wrong, or what training does about it, in one sentence.
    """

    severity: Severity
    title: str
    meaning: str


class Finding(NamedTuple):
    """A finding about one record. `image` is the index of one of its images, or -1 for the record itself."""

    kind: str
    reason: str
    image: int = -1


KINDS: dict[str, Kind] = {
    "malformed_record": Kind("error", "malformed record", "An unknown layout, or a value of the wrong type."),
    "invalid_json": Kind("error", "invalid JSON", "The record cannot be decoded."),
    "ambiguous_quote": Kind(
        "error", "ambiguous quote", "In a TSV: one cell with line breaks and tabs, or several rows of an unquoted file."
    ),
    "not_utf8": Kind("error", "not UTF-8", "The bytes are text in another encoding, or not text."),
    "lone_surrogate": Kind("error", "lone surrogate", "Half a UTF-16 pair, which no tokenizer can encode."),
    "path_outside_root": Kind("error", "path outside the image root", "An image path or link leaves the image root."),
    "missing_image": Kind("error", "missing image", "The image file does not exist or cannot be read."),
    "not_fetched": Kind("error", "URL not allowed", "The image is a URL; allow fetching with --allow-http."),
    "undecodable_image": Kind("error", "undecodable image", "The bytes are not an image in a supported format."),
    "truncated_image": Kind("error", "truncated image", "The header is intact, the rest is missing or damaged."),
    "decompression_bomb": Kind(
        "error", "decompression bomb", "The header claims too many pixels; the image is not decoded."
    ),
    "unsupported_media": Kind("error", "video or audio", "Only images are read; text alone would be learned."),
    "preference_data": Kind(
        "error", "preference data", "Chosen and rejected answers (DPO, KTO), which are not learned as answers."
    ),
    "tool_definitions": Kind(
        "error", "tool definitions", "No template writes them, and calls would come from nowhere."
    ),
    "grounding_objects": Kind(
        "error", "boxes to be filled in", "Places for boxes and names stay in the text as they are."
    ),
    "unread_key": Kind("error", "unread key of a turn", "A turn holds something besides its text that is not read."),
    "out_of_memory": Kind("error", "does not fit into memory", "The image cannot be decoded in the memory left."),
    "slot_mismatch": Kind("error", "image count mismatch", "The numbers of <image> placeholders and of images differ."),
    "role_order": Kind(
        "error", "turns out of order", "An unknown speaker, or an order of turns that templates cannot write."
    ),
    "nothing_to_learn": Kind("error", "nothing to learn", "There is no answer, or all are marked as not trained."),
    "empty_answers": Kind("error", "all answers empty", "Only the end-of-answer token would be learned."),
    "template_refusal": Kind("error", "refused by the template", "The model's template cannot write this record."),
    "over_length": Kind(
        "error", "over length", "After truncation to max_length, no answer is left or an image is cut."
    ),
    "leak": Kind("error", "evaluation leak", "The evaluation set holds the same image or conversation."),
    "exact_duplicate": Kind("error", "exact duplicate", "Same images and same text as an earlier record."),
    "not_downloaded": Kind(
        "left out", "not downloaded", "img2dataset could not fetch the image; the record holds none."
    ),
    "cut_text": Kind(
        "warning", "truncated to max_length", "The end of the record exceeds max_length and is not learned."
    ),
    "empty_answer": Kind(
        "warning", "some answers empty", "Of an empty answer only the end-of-answer token is learned."
    ),
    "exif_rotation": Kind(
        "warning", "EXIF rotation", "The image is rotated by its EXIF orientation; other tools may not do that."
    ),
    "extreme_aspect": Kind(
        "warning", "extreme aspect", "Little of the image is left when it is resized or cropped to a square."
    ),
    "tiny_image": Kind("warning", "tiny image", "A side is smaller than one patch."),
    "huge_image": Kind("warning", "huge image", "Decoding takes much time and memory in every epoch."),
    "control_tokens": Kind(
        "warning",
        "control tokens in text",
        "They are encoded as text here; other tools may treat them as control tokens.",
    ),
    "replacement_character": Kind("warning", "replacement character", "U+FFFD: a character was lost in a conversion."),
    "mojibake": Kind("warning", "mojibake", "UTF-8 text that was decoded with another encoding."),
    "near_leak": Kind("warning", "near evaluation leak", "An image is nearly the same as one of the evaluation set."),
    "near_duplicate": Kind("warning", "near duplicate", "An image is nearly the same as one of an earlier record."),
}


def excludes(kind: str) -> bool:
    """Whether a record with such a finding is excluded from the clean index."""
    return KINDS[kind].severity != "warning"


def is_error(kind: str) -> bool:
    return KINDS[kind].severity == "error"
