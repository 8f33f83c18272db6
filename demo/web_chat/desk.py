"""`Desk`: what all functions of the page share, and the state of a visitor as values of its widgets."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from mmchat.errors import UserError
from web_chat import rendering
from web_chat.conversation import Turn
from web_chat.feedback import Feedback
from web_chat.limits import Limits, Turnstile
from web_chat.models import Models
from web_chat.visitors import Visitor, Visitors
from web_chat.widgets import html_part, message_box


@dataclass
class Desk:
    """Models, limits and visitors of a demo."""

    models: Models
    limits: Limits
    scratch: Path
    """A folder for files that Gradio serves once."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Questions with an image to choose from."""
    feedback: Feedback | None = None
    """Where ratings go; None: they are not kept."""
    visitors: Visitors = field(init=False)
    turnstile: Turnstile = field(init=False)

    def __post_init__(self) -> None:
        self.visitors = Visitors(self.models.names[0])
        self.turnstile = Turnstile(self.limits)

    def visitor(self, request: gr.Request) -> Visitor:
        """Who asks."""
        return self.visitors.get(request.session_hash or "")

    def idle(self, request: gr.Request) -> Visitor:
        """Who asks, refused while an answer is in progress."""
        visitor = self.visitor(request)
        if visitor.pending:
            raise UserError("The last question is still being answered.")
        return visitor

    def chats(self, visitor: Visitor, box: dict[str, Any] | None = None) -> list:
        """Values of both chats, of the lines about their last answers, and of the box, which is disabled if busy."""
        messages = [self.messages(visitor, number) for number in (0, 1)]
        lines = [self.line(visitor, number) for number in (0, 1)]
        return [*messages, *lines, message_box(box, busy=bool(visitor.pending))]

    def messages(self, visitor: Visitor, number: int) -> list[dict[str, Any]]:
        """The bubbles of a side."""
        if number >= len(visitor.sides):
            return []
        return rendering.to_messages(visitor.sides[number].conversation, html_part)

    def line(self, visitor: Visitor, number: int) -> str:
        """The line about the last answer of a side."""
        if number >= len(visitor.sides) or not visitor.sides[number].conversation.turns:
            return ""
        turn = visitor.sides[number].conversation.turns[-1]
        return rendering.status_html(turn.status, turn.model if len(self.models.names) > 1 else "")

    def located(self, visitor: Visitor, number: int, index: Any) -> tuple[int, str]:
        """The turn of a bubble, and what it shows, by its place in the chat."""
        index = index[0] if isinstance(index, list | tuple) else index
        shown = rendering.bubbles(visitor.sides[number].conversation) if number < len(visitor.sides) else []
        if not isinstance(index, int) or not 0 <= index < len(shown):
            raise UserError("This conversation has changed; reload the page.")
        return shown[index][:2]

    def as_box(self, turn: Turn) -> dict[str, Any]:
        """A question as a value of the box, to change it and send it again."""
        return {"text": turn.question, "files": [self.as_file(image.name, image.data) for image in turn.images]}

    def as_file(self, name: str, data: bytes) -> str:
        """A file in the scratch folder, which is swept."""
        path = Path(tempfile.mkdtemp(dir=self.scratch)) / (Path(name).name or "image")
        path.write_bytes(data)
        return str(path)
