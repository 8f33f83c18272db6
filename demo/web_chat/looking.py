"""HTML of what a model saw of the images and where it looked. script.js draws the attention on the views."""

import base64
import html
from typing import Any

import numpy as np
from PIL import Image

from mmchat.errors import UserError
from mmchat.images import data_uri, load_image
from mmchat.inference.attention_maps import AttentionMaps, attention_maps
from mmchat.inference.views import seen_views
from web_chat.conversation import Conversation

SMALLEST, LARGEST = 64, 384
"""Longest side, in pixels, of the views in the page."""


def look(generator: Any, conversation: Conversation) -> str:
    """HTML about the last answer of a conversation: views of all images, and its words as buttons.

    Raises:
        UserError: There is no answer or no image.
    """
    answered = [number for number, turn in enumerate(conversation.turns) if turn.state == "done"]
    if not answered or not conversation.images:
        raise UserError("ask about an image first: here is shown what the model saw of it, and where it looked")
    messages, uploads = conversation.messages(answered[-1] + 1)
    images = [load_image(upload.data) for upload in uploads]
    maps, note = None, ""
    try:
        maps = attention_maps(generator, messages, images, conversation.turns[answered[-1]].answer)
    except UserError as error:
        note = f'<p class="note">{html.escape(str(error))}</p>'
    fit = generator.processor.image_processor.specs[0].preprocessing.fit
    heat = None if maps is None else _brightness(maps)
    parts = [note if maps is None else _words(maps)]
    for number, (upload, views) in enumerate(zip(uploads, seen_views(generator.processor, images), strict=True)):
        figures = [_view(view, None if heat is None else heat[number][index]) for index, view in enumerate(views)]
        parts.append(f'<p class="note">{html.escape(upload.name)}, {_change(upload.size, views)} ({fit})</p>')
        parts.append(f'<div class="views">{"".join(figures)}</div>')
    return f'<div class="looking">{"".join(parts)}</div>'


def _change(size: tuple[int, int], views: list[Image.Image]) -> str:
    """The size of an image and of its views."""
    count = f"{len(views)} of " if len(views) > 1 else ""
    return f"{size[0]} x {size[1]} pixels, seen as {count}{views[0].width} x {views[0].height}"


def _words(maps: AttentionMaps) -> str:
    buttons = (
        f'<button type="button" class="word" data-word="{number}" title="{share:.0%} of its attention on images">'
        f"{html.escape(word)}</button>"
        for number, (word, share) in enumerate(zip(maps.words, maps.shares, strict=True))
    )
    return (
        '<p class="note">Choose a word: bright places got more of its attention (mean of layers and heads).</p>'
        f'<div class="words">{"".join(buttons)}</div>'
    )


def _brightness(maps: AttentionMaps) -> list[list[np.ndarray]]:
    """Per image and view uint8[words, rows, columns]: 255 where, in all images, a word looked most."""
    flat = np.concatenate([view.reshape(len(view), -1) for image in maps.heat for view in image], axis=1)
    low = flat.min(1)[:, None, None]
    span = np.maximum(flat.max(1)[:, None, None] - low, 1e-12)
    return [[np.round(255 * (view - low) / span).astype(np.uint8) for view in image] for image in maps.heat]


def _view(view: Image.Image, heat: np.ndarray | None) -> str:
    side = max(SMALLEST, min(LARGEST, max(view.size)))
    canvas = ""
    if heat is not None:
        data = base64.b64encode(heat.tobytes()).decode()
        canvas = f'<canvas width="{heat.shape[2]}" height="{heat.shape[1]}" data-heat="{data}"></canvas>'
    return f'<div class="view"><img src="{data_uri(view, side)}" alt="a view of the image">{canvas}</div>'
