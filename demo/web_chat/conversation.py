"""A conversation: questions with images, and answers. It is the record; what the browser shows is made from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from web_chat.limits import UploadedImage

State = Literal["asked", "done", "failed"]


@dataclass(frozen=True)
class Status:
    """How an answer was made."""

    reason: str
    """Why it ended: a `Reply.reason`."""
    new_tokens: int
    limit: int
    """Most new tokens asked for."""
    seconds: float
    first_seconds: float
    """Until the first text."""
    prompt_tokens: int
    slots: int
    """Tokens of the prompt that show images."""
    shared_tokens: int
    """Tokens of the prompt that an earlier answer had left in the cache."""
    context: int

    @property
    def speed(self) -> float:
        """Tokens per second after the first text; 0 if there is nothing to measure."""
        rest = self.seconds - self.first_seconds
        return (self.new_tokens - 1) / rest if self.new_tokens > 1 and rest > 0 else 0.0


@dataclass
class Turn:
    """A question and its answer. A failed one is shown, but is not part of what the model reads later."""

    question: str
    images: tuple[UploadedImage, ...] = ()
    answer: str = ""
    """The answer; of a failed turn, the error message."""
    state: State = "asked"
    model: str = ""
    status: Status | None = None
    rating: Literal["", "up", "down", "corrected"] = ""
    given: str = ""
    """What the model answered, if the answer was corrected."""


@dataclass
class Conversation:
    """Turns with one model after another, and a system prompt. An empty one is the model's own."""

    turns: list[Turn] = field(default_factory=list)
    system: str = ""

    @property
    def images(self) -> list[UploadedImage]:
        """Images of all turns that the model reads."""
        return [image for turn in self.turns if turn.state != "failed" for image in turn.images]

    def messages(self, count: int | None = None) -> tuple[list[dict[str, Any]], list[UploadedImage]]:
        """The first `count` turns (None: all) for a model, and their images. The last turn is a question.

        Failed turns are left out, unless the last is one that is asked again.
        """
        turns = self.turns[:count]
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        images: list[UploadedImage] = []
        for turn in (one for one in turns if one.state != "failed" or one is turns[-1]):
            parts = [*({"type": "image"} for _ in turn.images), {"type": "text", "text": turn.question}]
            messages.append({"role": "user", "content": parts})
            images += turn.images
            if turn is not turns[-1]:
                messages.append({"role": "assistant", "content": turn.answer.strip()})
        return messages, images

    def ask(self, question: str, images: Sequence[UploadedImage] = ()) -> Turn:
        """Add a question."""
        self.turns.append(Turn(question, tuple(images)))
        return self.turns[-1]

    def ask_again(self, number: int, question: str | None = None) -> Turn:
        """Forget what came after a question, and ask it again, or with another text."""
        turn = self.turns[number]
        del self.turns[number:]
        return self.ask(turn.question if question is None else question, turn.images)

    def undo(self) -> Turn | None:
        """Remove the last turn and return it; None if there is none."""
        return self.turns.pop() if self.turns else None

    def copy(self) -> "Conversation":
        """The same turns, to be continued separately."""
        return Conversation([replace(turn) for turn in self.turns], self.system)
