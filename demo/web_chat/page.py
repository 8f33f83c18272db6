"""The page: its widgets, and which function each event calls."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import gradio as gr

from web_chat.asking import Asking
from web_chat.changing import Changing
from web_chat.desk import Desk
from web_chat.keeping import Keeping
from web_chat.limits import Limits
from web_chat.rendering import LATEX
from web_chat.widgets import NO_COMPARISON, add_photo, kindly, message_box

WELCOME = "### Ask about images\nAdd one with the clip, or paste or drop it into the box."
OR_EXAMPLE = "\n\nOr start with an example."
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
"""Of events that wait for nothing and refuse nothing."""


def build(desk: Desk, facts: str = "") -> gr.Blocks:
    """Build the page.

    Args:
        desk: What its functions share.
        facts: One line about the first model.
    """
    asking, changing, keeping = Asking(desk), Changing(desk), Keeping(desk)
    with gr.Blocks(title="mmchat", fill_height=True) as page:
        model, against, new, panel = _header(desk.models.names)
        with gr.Row(elem_id="body"):
            with gr.Column(elem_id="talk"):
                about = gr.HTML(facts, padding=False, elem_id="about")
                with gr.Row(elem_id="chats"):
                    chats, columns, lines = zip(*(_chat(number, desk) for number in (0, 1)), strict=True)
                with gr.Row(visible=False, elem_id="votes") as votes:
                    better = [gr.Button(f"The {side} is better", size="sm") for side in ("first", "second")]
                box = message_box()
            with gr.Column(elem_id="panel", min_width=300):
                system, *options = _settings(desk.limits)
                look, views = _looking()
                saves, opened = _saving()
                photo = _camera()
        stored, file = (gr.Textbox(visible="hidden", elem_id=name) for name in ("stored", "file"))
        shown = [*chats, *lines, box]
        restored = [*shown, model, against, system]

        asked = [_on(box.submit, asking.submit, [box, system], shown)]
        changed = [_on(opened.upload, keeping.open_file, [opened], restored)]
        answers = []
        for number, chat in enumerate(chats):
            asked.append(_on(chat.example_select, asking.submit_example, [system], shown))
            asked.append(_on(chat.retry, changing.retry(number), [], shown))
            asked.append(_on(chat.edit, changing.edit(number), [], shown))
            changed.append(_on(chat.undo, changing.undo, [], shown))
            if desk.feedback is not None:
                _on(chat.like, changing.like(number), [], [])
                _on(better[number].click, changing.prefer(number), [], [])
        for event in asked:
            for number, outputs in enumerate(zip(chats, lines, [box, box], strict=True)):
                answer = asking.answering(number)
                answers.append(event.success(answer, options, list(outputs), show_progress="hidden"))
        # Gradio cancels before the chat is emptied, or late pieces would reappear.
        cancelled = new.click(asking.stop, None, None, cancels=answers, **AT_ONCE)
        changed += [*answers, cancelled.then(asking.new_chat, None, shown, **AT_ONCE)]
        for event in changed:
            kept = event.then(keeping.saved, None, stored, **AT_ONCE)
            kept.success(None, stored, None, js="(text) => window.mmchat.store(text)")
        box.stop(asking.stop, None, None, **AT_ONCE)

        _on(model.change, changing.choose, [model], [about])
        compared = _on(against.change, changing.compare, [against], shown)
        for widget in [columns[1], votes] if desk.feedback is not None else [columns[1]]:
            compared.success(_show_second, against, widget, **AT_ONCE)
        panel.click(None, None, None, js="() => window.mmchat.togglePanel()")
        _on(look.click, keeping.look, [], [views], show_progress="minimal")
        for kind, button in saves.items():
            made = _on(button.click, keeping.download(kind), [], [file])
            made.success(None, file, file, js="(text) => window.mmchat.download(text)")
        photo.input(add_photo, [photo, box], [photo, box], **AT_ONCE)
        _on(page.load, keeping.reload, [stored], restored, js="() => window.mmchat.stored()")
        page.unload(asking.leave)
    return page


def _on(event: Callable, function: Callable, inputs: list, outputs: list, **more: Any) -> Any:
    """Call a function at an event. What it refuses is shown as a message."""
    options = {"show_progress": "hidden", **more}
    return event(kindly(function, len(outputs)), inputs, outputs, **options)


def _show_second(name: str) -> dict[str, Any]:
    return gr.update(visible=name != NO_COMPARISON)


def _header(names: Sequence[str]) -> tuple:
    """Choice of a model and of one to compare with, and two buttons."""
    several, plain = len(names) > 1, {"show_label": False, "container": False, "scale": 1}  # labels are read aloud
    with gr.Row(elem_id="header"):
        gr.HTML("<h1>mmchat</h1>", padding=False)
        model = gr.Dropdown(list(names), value=names[0], label="Model", interactive=several, elem_id="model", **plain)
        choices = [NO_COMPARISON, *names]
        other = {"label": "Compare with", "visible": several, "elem_id": "against"}
        against = gr.Dropdown(choices, value=NO_COMPARISON, **other, **plain)
        new = gr.Button("New chat", size="sm", scale=0, min_width=90, elem_id="new")
        panel = gr.Button("Settings", size="sm", scale=0, min_width=90, elem_id="panel-button")
    return model, against, new, panel


def _chat(number: int, desk: Desk) -> tuple:
    """A chat, its column, and the line about its last answer."""
    with gr.Column(visible=number == 0, elem_classes="side", min_width=280) as column:
        chat = gr.Chatbot(
            elem_id=f"chat-{'ab'[number]}",
            elem_classes="chat",
            examples=None if number else deepcopy(desk.examples),  # Gradio changes them
            show_label=False,
            scale=1,
            height="100%",
            placeholder=None if number else WELCOME + (OR_EXAMPLE if desk.examples else ""),
            latex_delimiters=LATEX,
            buttons=["copy"],
            editable="all",
            allow_tags=False,
            allow_file_downloads=False,
            feedback_options=("Like", "Dislike") if desk.feedback else (),
            line_breaks=True,
            group_consecutive_messages=False,  # edits of a group that holds images do not arrive
        )
        line = gr.HTML("", padding=False, elem_classes="line")
    return chat, column, line


def _settings(limits: Limits) -> list[Any]:
    """System prompt, temperature, top-p, repetition penalty, seed, length."""
    most = limits.new_tokens
    top_p = "sample from the likeliest tokens that have this share together; 1: from all"
    with gr.Accordion("Answers", open=True):
        return [
            gr.Textbox(label="System prompt", info="instructions before the conversation; empty: the model's own"),
            gr.Slider(0, 1.5, 0, step=0.1, label="Temperature", info="0: the likeliest answer, always the same"),
            gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info=top_p),
            gr.Slider(1, 2, 1, step=0.05, label="Repetition penalty", info="above 1: fewer repeated words"),
            gr.Number(-1, label="Seed", info="of the sampling; -1: another each time", precision=0, minimum=-1),
            gr.Slider(1, most, min(128, most), step=1, label="Max new tokens", info="where an answer is cut off"),
        ]


def _looking() -> tuple:
    with gr.Accordion("What the model saw", open=False):
        button = gr.Button("Show for the last answer", size="sm", elem_id="look")
        views = gr.HTML("", padding=False, elem_id="views")
    return button, views


def _saving() -> tuple:
    labels = {"json": "Save to reopen (JSON)", "html": "Page to share (HTML)", "zip": "LLaVA JSON with images (ZIP)"}
    with gr.Accordion("Save and share", open=False):
        gr.HTML('<p class="note">This tab keeps the conversation over a reload.</p>', padding=False)
        buttons = {kind: gr.Button(label, size="sm", elem_id=f"save-{kind}") for kind, label in labels.items()}
        opened = gr.UploadButton("Open a saved one", size="sm", file_types=[".json"], elem_id="open")
    return buttons, opened


def _camera() -> gr.Image:
    with gr.Accordion("Camera", open=False):
        return gr.Image(sources=["webcam"], type="filepath", format="png", show_label=False, elem_id="camera")
