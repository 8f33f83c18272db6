"""What a visitor looks at and takes away: views and attention, saved conversations, pages, LLaVA's JSON."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from mmchat.errors import UserError
from web_chat import saving
from web_chat.desk import Desk
from web_chat.looking import look
from web_chat.visitors import Side, Visitor
from web_chat.widgets import NO_COMPARISON

MEDIA_TYPES = {"json": "application/json", "zip": "application/zip", "html": "text/html"}

WIDGETS = 8
"""Those that show a conversation: two chats, two lines, the box, two choices of models, the system prompt."""
MOST_KEPT = 24 * 2**20
"""Bytes of images up to which a conversation survives a reload."""


class Keeping:
    """Functions of the panel. Files are made in memory and saved by the browser."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def look(self, request: gr.Request) -> str:
        """What the first model saw and where it looked."""
        side = self.desk.idle(request).sides[0]
        with self.desk.models.use(side.model) as generator:
            return look(generator, side.conversation)

    def saved(self, request: gr.Request) -> str:
        """The conversation for the browser's own storage; empty if it is too large to be sent after each answer."""
        visitor = self.desk.visitor(request)
        size = sum(len(image.data) for side in visitor.sides for image in side.conversation.images)
        return saving.to_json(_sides(visitor)) if size <= MOST_KEPT else ""

    def reload(self, text: str, request: gr.Request) -> list:
        """What the browser has kept, when the page is opened. Nothing changes if the visitor was faster."""
        if not text or self.desk.visitor(request).sides[0].conversation.turns:
            return [gr.skip()] * WIDGETS
        return self._reopen(text, request)

    def open_file(self, path: str, request: gr.Request) -> list:
        """Continue a conversation from a file, which is deleted."""
        self.desk.idle(request)
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        finally:
            Path(path).unlink(missing_ok=True)
        return self._reopen(text, request)

    def _reopen(self, text: str, request: gr.Request) -> list:
        """Continue a saved conversation; returns values of all widgets that show it."""
        visitor = self.desk.visitor(request)
        self._restore(visitor, saving.from_json(text, self.desk.limits))
        second = visitor.sides[1].model if len(visitor.sides) > 1 else NO_COMPARISON
        return [*self.desk.chats(visitor), visitor.sides[0].model, second, visitor.sides[0].conversation.system]

    def _restore(self, visitor: Visitor, saved: saving.Sides) -> None:
        """Replace the visitor's sides. A model that this demo does not have is replaced by the present one."""
        if not saved:
            return
        known = [Side(model, conversation) for model, conversation in saved if model in self.desk.models.names]
        visitor.restart()
        visitor.sides = known or [Side(visitor.sides[0].model, saved[0][1])]

    def download(self, kind: str) -> Callable:
        """The function that makes a file for the browser to save. "zip" is LLaVA's JSON with the images."""

        def make(request: gr.Request) -> str:
            sides = _sides(self.desk.visitor(request))
            if not sides[0][1].turns:
                raise UserError("there is nothing to save yet")
            if kind == "zip":
                data = saving.to_llava(sides[0][1])
            else:
                data = {"html": saving.to_html, "json": saving.to_json}[kind](sides).encode()
            file = {"name": f"conversation.{kind}", "type": MEDIA_TYPES[kind]}
            return json.dumps({**file, "data": base64.b64encode(data).decode()})

        return make


def _sides(visitor: Visitor) -> saving.Sides:
    return [(side.model, side.conversation) for side in visitor.sides]
