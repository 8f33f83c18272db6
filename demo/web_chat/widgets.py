"""Small pieces of the page that its functions return."""

import html
from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr

from mmchat.errors import UserError
from mmchat.inference.model_facts import model_facts

DESCRIBE = "Describe the image."
NO_COMPARISON = "no comparison"


def message_box(value: dict | None = None, busy: bool = False) -> gr.MultimodalTextbox:
    """The input box. While the model is `busy` it has a stop button instead of a submit button."""
    state = {"interactive": not busy, "submit_btn": not busy, "stop_btn": busy}
    images = {"file_types": ["image"], "file_count": "multiple", "placeholder": "Ask about an image"}
    extras = {"max_plain_text_length": 100_000, "elem_id": "box", "sources": ["upload"]}
    return gr.MultimodalTextbox(value, show_label=False, **extras, **images, **state)


def add_photo(photo: str | None, box: dict[str, Any] | None) -> tuple:
    """Move a photo of the camera into the box."""
    if photo is None:
        return gr.skip(), gr.skip()
    box = box or {"text": "", "files": []}
    return None, message_box({"text": box["text"], "files": [*box["files"], photo]})


def html_part(text: str) -> gr.HTML:
    """HTML of ours in the chat, which is not sanitized."""
    return gr.HTML(text, padding=False)


def facts_html(generator: Any) -> str:
    """One line about a model."""
    return f'<p class="facts">{html.escape(model_facts(generator).summary)}</p>'


def kindly(function: Callable, outputs: int) -> Callable:
    """A function of the page whose UserErrors are shown as a message and change nothing else.

    Gradio's own errors would cover every widget that the function writes.

    Args:
        function: The function.
        outputs: How many widgets it writes.
    """

    @wraps(function)
    def work(*inputs: Any, **more: Any) -> Any:
        try:
            return function(*inputs, **more)
        except UserError as error:
            gr.Warning(html.escape(str(error)), title="Not possible")
            return gr.skip() if outputs == 1 else [gr.skip()] * outputs if outputs else None

    return work
