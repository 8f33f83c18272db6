"""From a question with images, or a plain text, to the prompt that the engine takes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmchat.conversation.safe_tokenizer import safe_tokenizer_for
from mmchat.errors import UserError
from mmchat.images import as_rgb, load_image
from mmchat.inference.engine import Prompt
from mmchat.inference.engine.prefixes import content_key
from mmchat.model.processor import MMChatProcessor

ImageInput = str | Path | bytes | Image.Image | Callable[[], Image.Image]
"""A path, the bytes of an image file, a PIL image, or a function that opens one."""
Message = dict[str, Any]
"""`{"role": "user" | "assistant", "content": str | parts}`. `{"type": "image"}` parts take the images in order."""


def append_question(
    question: str, images: ImageInput | Sequence[ImageInput], history: Sequence[Message]
) -> tuple[list[Message], list[ImageInput]]:
    """A conversation with a question more. Arguments, return value and errors as in `Generator.conversation`."""
    image_list = list(images) if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
    mentioned = sum(
        part["type"] == "image"
        for message in history
        if isinstance(message["content"], list)
        for part in message["content"]
    )
    if mentioned > len(image_list):
        raise UserError(f"the history mentions {mentioned} images, but {len(image_list)} were given")
    content = [*({"type": "image"} for _ in image_list[mentioned:]), {"type": "text", "text": question}]
    return [*history, {"role": "user", "content": content}], image_list


def conversation_prompt(
    processor: MMChatProcessor, messages: Sequence[Message], images: Sequence[ImageInput]
) -> Prompt:
    """The prompt for an answer to a conversation. Arguments and errors as in `Generator.prompt`."""
    opened = [_open(image) for image in images]
    layouts = processor.layouts([image.size for image in opened])
    ids = processor.render(messages, layouts, add_generation_prompt=True).input_ids
    if not opened:
        return Prompt(ids)
    # Whether an image is split into tiles can depend on the number of images.
    keys = [content_key(image.tobytes(), image.size, len(opened) > 1) for image in opened]
    slots = [layout.slots for layout in layouts]
    return Prompt(ids, processor.image_inputs([opened]), tuple(zip(keys, slots, strict=True)))


def text_prompt(tokenizer, text: str) -> Prompt:
    """The prompt for the continuation of a text. Control tokens in it are text."""
    safe = safe_tokenizer_for(tokenizer)
    return Prompt([*safe.prefix, *safe.encode(text).ids])


def _open(image: ImageInput) -> Image.Image:
    if callable(image):
        image = image()
    return as_rgb(image) if isinstance(image, Image.Image) else load_image(image)
