"""Conversations in OpenAI's dialect, as servers take them."""

import base64
import io
from typing import Any

from PIL import Image


def as_request(messages: list[dict[str, Any]], images: list[Image.Image]) -> dict[str, Any]:
    """A conversation for a server.

    Args:
        messages: In the chat dialect, contents as parts.
        images: Those of the messages, in order.

    Returns:
        `messages` in OpenAI's dialect with images as data URIs, and `images`: the same as base64.
    """
    data = [_base64(image) for image in images]
    rest = iter(data)
    parts_of = {
        "image": lambda part: {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{next(rest)}"}},
        "text": lambda part: part,
    }
    asked = [
        {"role": message["role"], "content": [parts_of[part["type"]](part) for part in message["content"]]}
        for message in messages
    ]
    return {"messages": asked, "images": data}


def _base64(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "png")
    return base64.b64encode(file.getvalue()).decode()
