"""The parts of a message: text, or an image with where it is.

    {"type": "text" | "input_text" | "output_text", "text"}         {"text"}
    {"type": "image", "image" | "url" | "path" | "image_path"}      {"image"}
    {"type": "image_url" | "input_image", "image_url"}              {"type": "image", "source": {...}}

They are Hugging Face's (docs: "Multimodal templates"), those of OpenAI's Chat Completions and Responses, of Qwen-VL's
`from_list_format`, and Anthropic's.
"""

from collections.abc import Mapping
from typing import Any

from mmchat.data.record_meaning import refuse_media_part
from mmchat.errors import UserError

TEXT_TYPES = ("text", "input_text", "output_text")
IMAGE_TYPES = ("image", "image_url", "input_image")
SOURCES = ("image_url", "image", "url", "path", "image_path", "source")


def part_type(part: Any) -> str | None:
    """ "text", "image", or None for any other part."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind is None and isinstance(part, Mapping):
        filled = {key for key, value in part.items() if value is not None}
        kind = {frozenset({"text"}): "text", frozenset({"image"}): "image"}.get(frozenset(filled))
    return "text" if kind in TEXT_TYPES else "image" if kind in IMAGE_TYPES else None


def read_part(part: Any, inline_images: list[Any], number: int) -> dict[str, Any]:
    """A text part; or an image part without its source, which is appended to `inline_images`.

    Raises:
        UserError: Neither text nor image, or an image at a place that is not read. It names the turn by `number`.
    """
    kind = part_type(part)
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    refuse_media_part(part, number)
    if kind != "image":
        raise UserError(f"turn {number} holds a part that is neither text nor image: {part!r:.80}")
    if part.get("file_id") is not None:
        raise UserError(f"turn {number} holds an image by file_id, which only its server can read: {part!r:.80}")
    source = next((_place(part[key]) for key in SOURCES if part.get(key) is not None), None)
    if source is not None:
        inline_images.append(source)
    return {"type": "image"}


def _place(source: Any) -> Any:
    """What `make_image_ref` takes: OpenAI has {"url"}, Anthropic {"media_type", "data"} or {"url"}."""
    if isinstance(source, Mapping) and isinstance(source.get("data"), str):
        return f"data:{source.get('media_type') or ''};base64,{source['data']}"
    if isinstance(source, Mapping) and "url" in source:
        return source["url"]
    return source
