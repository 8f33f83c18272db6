"""What `InternVLProcessor` of transformers reads, as JSON: it needs torchvision, so it is not made here.

Sources in transformers: models/internvl/processing_internvl.py and models/got_ocr2/image_processing_got_ocr2.py.
"""

from typing import Any

from mmchat.auto import MMChatProcessor
from mmchat.conversation import SlotTokens, to_jinja
from mmchat.conversation.jinja import quote
from mmchat.conversion.formats.hf_vision import pixel_values
from mmchat.vision import TowerSpec

SLOT_TOKENS = {"pad": "context_image_token", "start": "start_image_token", "end": "end_image_token"}
"""Field of `SlotTokens` -> attribute of the tokenizer that `InternVLProcessor` reads."""
VIDEO_TOKENS = ("<video>", "<|video_pad|>")
"""Tokens that published tokenizers have for videos."""


def processor_reasons(processor: MMChatProcessor) -> list[str]:
    """Why the class cannot write an assistant's prompts."""
    tokenizer, slots = processor.tokenizer, processor.slot_tokens
    reasons = []
    if video_token(processor) is None:
        reasons.append("its tokenizer has no special token that prompts leave free, which the class needs for videos")
    if slots.end is not None and _encodes_otherwise_after(tokenizer, slots.end):
        reasons.append(
            "its tokenizer writes a space at the beginning of a text, but not after a token, and the class does not "
            "encode the text after an image by itself"
        )
    return reasons


def fit_reasons(spec: TowerSpec) -> list[str]:
    """Why the class's image processor makes other views."""
    how = spec.preprocessing
    if how.fit not in ("squash", "tiles"):
        return [f"its fit is {how.fit!r}, expected 'tiles' or 'squash'"]
    if how.tiling and not how.tiling.thumbnail and how.tiling.max_tiles > 1:
        return ["its tiles come without a thumbnail"]
    return []


def image_processor_values(spec: TowerSpec) -> dict[str, Any]:
    """Values of `GotOcr2ImageProcessor`. A square is one tile."""
    how, side = spec.preprocessing, spec.image_size
    fewest, most = (how.tiling.min_tiles, how.tiling.max_tiles) if how.tiling else (1, 1)
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": True,
        "min_patches": fewest,
        "max_patches": most,
        **pixel_values(spec),
        "size": {"height": side, "width": side},
    }


def processor_values(spec: TowerSpec, image_tokens: int) -> dict[str, Any]:
    """`processor_config.json`. Videos are not for mmchat's models, but the class has a processor for them."""
    video = {"video_processor_type": "InternVLVideoProcessor", **pixel_values(spec)}
    return {
        "processor_class": "InternVLProcessor",
        "image_seq_length": image_tokens,
        "image_processor": image_processor_values(spec),
        "video_processor": video | {"size": {"height": spec.image_size, "width": spec.image_size}},
    }


def tokenizer_values(processor: MMChatProcessor) -> dict[str, Any]:
    """Values of `tokenizer_config.json`: the names under which the class finds its tokens."""
    named = {name: getattr(processor.slot_tokens, field) for field, name in SLOT_TOKENS.items()}
    named["video_token"] = video_token(processor)
    return named | {"extra_special_tokens": named, "processor_class": "InternVLProcessor"}


def chat_template(processor: MMChatProcessor) -> str:
    """The Jinja with the pad token alone for an image: the class writes start and end itself."""
    return to_jinja(processor.template, SlotTokens(processor.slot_tokens.pad), processor.tokenizer, processor.system)


def video_token(processor: MMChatProcessor) -> str | None:
    """A special token that no prompt contains; None if there is none.

    The class looks for places of videos by this token, so it cannot be one that the chat template writes.
    """
    tokenizer = processor.tokenizer
    if named := getattr(tokenizer, "video_token", None):
        return named
    written = {*processor.slot_tokens.tokens}
    if processor.template == "auto":
        written |= {tokenizer.bos_token, tokenizer.eos_token}
    added = sorted(tokenizer.get_added_vocab().items(), key=lambda item: (item[0] not in VIDEO_TOKENS, item[1]))
    free = (token for token, _ in added if token not in written and quote(token)[1:-1] not in processor.chat_template)
    return next(free, None)


def _encodes_otherwise_after(tokenizer: Any, token: str) -> bool:
    """Whether a text after an added token is encoded differently than the same text alone."""
    alone, after = (tokenizer(text, add_special_tokens=False).input_ids for text in ("a", token + "a"))
    return alone != after[1:]
