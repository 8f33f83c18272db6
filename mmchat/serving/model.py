"""What the server needs of a model. `assistant` has it for a model directory; all other modules do without torch."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from mmchat.inference.reply import Piece, Reply
from mmchat.serving.metrics import EngineState


class Answer(Protocol):
    """An answer that is being made, as `mmchat.inference.answer.Answer`."""

    def pieces(self) -> Iterator[Piece]:
        """Wait for its pieces. Raises what `result` raises."""
        ...

    def cancel(self) -> None:
        """Stop it."""
        ...

    def result(self) -> Reply:
        """Wait for the whole answer."""
        ...


class Assistant(Protocol):
    """A model that answers. No method waits for the model. All may be called from any thread."""

    def chat(self, messages: Sequence[dict[str, Any]], images: Sequence[Any], **options: Any) -> Answer:
        """Queue a conversation. Raises UserError for an option that is out of range."""
        ...

    def complete(self, text: str, **options: Any) -> Answer:
        """Queue a text that is continued, control tokens in it as text. Errors as in `chat`."""
        ...

    def state(self) -> EngineState:
        """What the engine does now."""
        ...

    def close(self) -> None:
        """Cancel what runs."""
        ...
