"""Questions from the box, and the answers to them. Gradio calls each function in a thread."""

import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from mmchat.errors import UserError
from web_chat.answering import Settings, answer
from web_chat.conversation import Turn
from web_chat.desk import Desk
from web_chat.limits import UploadedImage, check_text, take_uploads
from web_chat.visitors import Side, Visitor
from web_chat.widgets import DESCRIBE, message_box


class Asking:
    """Functions of the events that ask, answer and stop."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def submit(self, message: dict, system: str, request: gr.Request) -> list:
        """A question from the box."""
        visitor = self.desk.idle(request)
        text = message["text"].strip() or (DESCRIBE if message["files"] else "")
        if not text:
            raise UserError("Type a question, or add an image.")
        check_text(text, self.desk.limits)
        return self._ask(visitor, text, [Path(file) for file in message["files"]], system)

    def submit_example(self, event: gr.SelectData, system: str, request: gr.Request) -> list:
        """An example, by its number: what the browser says about its files is not trusted."""
        visitor, examples = self.desk.idle(request), self.desk.examples
        if not isinstance(event.index, int) or not 0 <= event.index < len(examples):
            raise UserError("There is no such example; reload the page.")
        chosen = examples[event.index]
        files = [Path(file) for file in chosen["files"]]
        copies = [Path(self.desk.as_file(file.name, file.read_bytes())) for file in files]
        return self._ask(visitor, chosen["text"], copies, system)

    def _ask(self, visitor: Visitor, text: str, files: list[Path], system: str) -> list:
        limits, before = self.desk.limits, visitor.sides[0].conversation.images
        check_text(system, limits, "system prompt")
        images: list[UploadedImage] = take_uploads(files, before, limits)
        for side in visitor.sides:
            side.conversation.system = system.strip()
        visitor.ask(text, images)
        return self.desk.chats(visitor)

    def answering(self, number: int) -> Callable:
        """The function that answers on one side; it does nothing if that side has no new question."""

        def answer_side(
            temperature: float, top_p: float, penalty: float, seed: float | None, length: int, request: gr.Request
        ) -> Iterator[tuple]:
            visitor = self.desk.visitor(request)
            if number not in visitor.pending:
                yield gr.skip(), gr.skip(), gr.skip()
                return
            side = visitor.sides[number]
            turn = side.conversation.turns[-1]
            turn.model = side.model
            try:
                settings = self._settings(temperature, top_p, penalty, seed, length)
                for line in self._answer(visitor, side, settings, _address(request)):
                    if not visitor.has(side, turn):  # a new chat has begun
                        return
                    yield self.desk.messages(visitor, number), line, gr.skip()
            except Exception as error:
                _fail(turn, error)
            finally:
                if visitor.has(side, turn):
                    visitor.pending.discard(number)
            if visitor.has(side, turn):
                messages, line = self.desk.messages(visitor, number), self.desk.line(visitor, number)
                yield messages, line, self._box_after(visitor, turn)

        return answer_side

    def _answer(self, visitor: Visitor, side: Side, settings: Settings, address: str) -> Iterator[str]:
        """Answer the last question of a side; yields the line about the answer."""
        turnstile = self.desk.turnstile
        with turnstile.waiting(address):
            while not turnstile.enter(address):
                yield '<p class="status">waiting: your other questions are being answered</p>'
                if visitor.stopped:
                    raise UserError("stopped before it was answered")
                time.sleep(0.2)
        try:
            yield '<p class="status">…</p>'
            with self.desk.models.use(side.model) as generator:
                for turn in answer(generator, side.conversation, settings, visitor):
                    if turn.state == "asked":
                        yield '<p class="status">…</p>'
        finally:
            turnstile.leave(address)

    def _settings(self, temperature: float, top_p: float, penalty: float, seed: float | None, length: int) -> Settings:
        if length > self.desk.limits.new_tokens:
            raise UserError(f"answers have at most {self.desk.limits.new_tokens} tokens here, found {length}")
        return Settings(
            temperature=float(temperature),
            top_p=None if top_p >= 1 else float(top_p),
            repetition_penalty=None if penalty == 1 else float(penalty),
            seed=None if seed is None or seed < 0 else int(seed),
            max_new_tokens=int(length),
        )

    def _box_after(self, visitor: Visitor, turn: Turn) -> Any:
        """The box once a side has answered: free when all have, with the question if it failed."""
        if visitor.pending:
            return gr.skip()
        return message_box(self.desk.as_box(turn) if turn.state == "failed" else None)

    def stop(self, request: gr.Request) -> None:
        """Stop the answers in progress. They end by themselves and keep their text."""
        self.desk.visitor(request).stop()

    def new_chat(self, request: gr.Request) -> list:
        """Stop and forget everything."""
        visitor = self.desk.visitor(request)
        visitor.restart()
        return self.desk.chats(visitor)

    def leave(self, request: gr.Request) -> None:
        """The visitor closed the page."""
        self.desk.visitors.leave(request.session_hash or "")


def _fail(turn: Turn, error: Exception) -> None:
    text = str(error)
    if not isinstance(error, UserError):
        traceback.print_exception(error)
        text = f"{type(error).__name__}: {error}"
    turn.state, turn.answer, turn.status = "failed", text, None


def _address(request: gr.Request) -> str:
    return request.username or (request.client.host if request.client else "")
