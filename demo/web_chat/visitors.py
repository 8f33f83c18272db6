"""Visitors by browser session. What they have sent is in memory and is dropped when they leave."""

import threading
import time
from dataclasses import dataclass, field

from web_chat.conversation import Conversation, Turn

MOST = 1000
"""Visitors remembered; those that were away for longest are forgotten first."""
AWAY = 6 * 3600
"""Seconds without an event after which a visitor is forgotten. The browser keeps the conversation."""


@dataclass
class Side:
    """A conversation and the model that answers next."""

    model: str
    conversation: Conversation = field(default_factory=Conversation)


@dataclass
class Visitor:
    """One or two sides, and the answers in progress."""

    sides: list[Side]
    running: set = field(default_factory=set)
    """Handles of answers."""
    pending: set[int] = field(default_factory=set)
    """Sides that have not answered the last question."""
    stopped: bool = False
    """Whether the visitor wants no more of what is pending."""
    seen: float = field(default_factory=time.monotonic)

    def has(self, side: Side, turn: Turn) -> bool:
        """Whether a turn is still the last of a side, and no new chat has begun."""
        turns = side.conversation.turns
        return any(one is side for one in self.sides) and bool(turns) and turns[-1] is turn

    def ask(self, question: str, images: list) -> None:
        """Put a question to all sides."""
        self.stopped = False
        for side in self.sides:
            side.conversation.ask(question, images)
        self.pending = set(range(len(self.sides)))

    def ask_again(self, number: int, turn: int, question: str | None = None) -> None:
        """Ask side `number` one of its questions again. With another text it is a question to all."""
        self.stopped = False
        numbers = [number] if question is None else range(len(self.sides))
        for one in numbers:
            if turn < len(self.sides[one].conversation.turns):
                self.sides[one].conversation.ask_again(turn, question)
                self.pending.add(one)

    def undo(self) -> Turn | None:
        """Remove the last turn of all sides; returns it."""
        turns = [side.conversation.undo() for side in self.sides]
        return next((turn for turn in turns if turn is not None), None)

    def stop(self) -> None:
        """Stop all answers."""
        self.stopped = True
        for handle in tuple(self.running):
            handle.cancel()

    def compare(self, model: str | None) -> None:
        """Open a second side that continues the same conversation, change its model, or close it."""
        if model is None:
            del self.sides[1:]
        elif len(self.sides) > 1:
            self.sides[1].model = model
        else:
            self.sides.append(Side(model, self.sides[0].conversation.copy()))

    def restart(self) -> None:
        """Stop and forget everything but the models."""
        self.stop()
        self.pending = set()
        self.sides = [Side(side.model, Conversation(system=side.conversation.system)) for side in self.sides]


class Visitors:
    """All visitors.

    Args:
        model: The model that new ones begin with.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._visitors: dict[str, Visitor] = {}

    def get(self, session: str) -> Visitor:
        """The visitor of a session, a new one if it is unknown."""
        with self._lock:
            visitor = self._visitors.pop(session, None) or Visitor([Side(self._model)])
            visitor.seen = time.monotonic()
            self._visitors[session] = visitor  # the last
            self._forget(visitor.seen)
            return visitor

    def leave(self, session: str) -> None:
        """Stop the visitor's answers and forget it."""
        with self._lock:
            visitor = self._visitors.pop(session, None)
        if visitor is not None:
            visitor.stop()

    def _forget(self, now: float) -> None:
        for session, visitor in list(self._visitors.items()):
            if len(self._visitors) <= MOST and now - visitor.seen < AWAY:
                return
            if not visitor.pending:
                del self._visitors[session]
