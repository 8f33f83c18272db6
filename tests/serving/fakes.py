"""An assistant without a model, for the server: it repeats the question and names the colour of each image."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event, Lock

from PIL import Image

from mmchat.errors import UserError
from mmchat.inference.reply import Piece, Reply, ScoredToken
from mmchat.serving.metrics import EngineState


@dataclass
class FakeAnswer:
    """Says its words one by one."""

    words: Callable[[], list[str]]
    longest: int
    pace: float
    ended: Callable[[], None]
    started: Event = field(default_factory=Event)
    stopped: Event = field(default_factory=Event)
    said: list[str] = field(default_factory=list)
    reason: str = ""
    with_logprobs: bool = False

    def pieces(self) -> Iterator[Piece]:
        try:
            for word in self.words():
                if self.stopped.wait(self.pace) or len(self.said) == self.longest:
                    break
                self.started.set()
                self.said.append(word)
                yield Piece(word, self._scored(word))
            self.reason = (
                "cancelled" if self.stopped.is_set() else "length" if len(self.said) == self.longest else "end"
            )
        finally:
            self.ended()

    def cancel(self) -> None:
        self.stopped.set()

    def result(self) -> Reply:
        if not self.reason:
            for _ in self.pieces():
                pass
        tokens = tuple(token for word in self.said for token in self._scored(word))
        return Reply("".join(self.said), self.reason, tuple(range(len(self.said))), 7, 0, tokens=tokens)

    def _scored(self, word: str) -> tuple[ScoredToken, ...]:
        return (ScoredToken(word, -1.0, ((word, -1.0), ("other", -2.0))),) if self.with_logprobs else ()


class FakeAssistant:
    """Answers `question|colour|colour` piece by piece. Colours are the first pixels of the images as hex.

    Args:
        pace: Seconds per piece.
        size: Characters of a piece.
    """

    def __init__(self, pace: float = 0.0, size: int = 3) -> None:
        self.pace, self.size = pace, size
        self.running = 0
        self.options: list[dict] = []
        self.broken: Exception | None = None
        self.closed = False
        self._lock = Lock()

    def chat(self, messages: Sequence[dict], images: Sequence, **options) -> FakeAnswer:
        if self.broken is not None:
            raise self.broken
        self.options.append({"messages": list(messages), **options})
        content = messages[-1]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = "".join(part["text"] for part in parts if part["type"] == "text")

        def words() -> list[str]:
            opened = [image() if callable(image) else image for image in images]
            if "too long" in text:
                raise UserError("the conversation has 900 tokens, but the model's context is 512")
            whole = "|".join([text, *map(colour_of, opened)])
            return [whole[start : start + self.size] for start in range(0, len(whole), self.size)]

        with self._lock:
            self.running += 1
        with_logprobs = options.get("top_logprobs") is not None
        return FakeAnswer(words, options["max_new_tokens"], self.pace, self._ended, with_logprobs=with_logprobs)

    def complete(self, text: str, **options) -> FakeAnswer:
        return self.chat([{"role": "user", "content": text}], [], **options)

    def _ended(self) -> None:
        with self._lock:
            self.running -= 1

    def state(self) -> EngineState:
        return EngineState(decoded=10, slots=16, cache_bytes=1 << 20)

    def close(self) -> None:
        self.closed = True


def colour_of(image: Image.Image) -> str:
    return "{:02x}{:02x}{:02x}".format(*image.getpixel((0, 0)))


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait for a condition. False if it does not hold in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
