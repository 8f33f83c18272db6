"""`VllmModel`: an exported model in vLLM, with as much of `Generator` as captions need."""

import base64
import io
import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from PIL import Image

from mmchat.errors import UserError

PROGRAM = Path(__file__).with_name("vllm_program.py")
SHOWN = 2000
"""Characters of vLLM's last output that an error message shows."""


class VllmEndedError(Exception):
    """vLLM's process is gone. Not a UserError, which would be about one image."""


@dataclass(frozen=True)
class VllmReply:
    """A complete answer, as `mmchat.inference.answer.Reply`."""

    text: str
    reason: str
    ids: tuple[int, ...]


class VllmModel:
    """vLLM as a process, to which requests are sent as JSON lines.

    Args:
        python: An interpreter that has vLLM.
        directory: An exported model.
        slots: Requests in the model at a time.
        dtype: Of the weights, as vLLM names it.

    Raises:
        UserError: vLLM does not open the directory.
    """

    def __init__(self, python: str, directory: Path, slots: int, dtype: str = "auto") -> None:
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - what vLLM prints, shown if it fails
        self._process = subprocess.Popen(
            [python, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages
        )
        self._numbers = count()
        self._waiting: dict[int, Future] = {}
        self._lock = Lock()
        self._send({"model": str(directory), "slots": slots, "dtype": dtype})
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise UserError(self._ended(f"does not open {directory}, which must be a model that was exported"))
        Thread(target=self._receive, name="mmchat-vllm", daemon=True).start()

    def submit(
        self,
        messages: Sequence[dict[str, Any]],
        images: Sequence[Callable[[], Image.Image]],
        *,
        max_new_tokens: int,
        repeats: int,
    ) -> "VllmAnswer":
        """Send a request, decoded greedily. The images are opened here. Raises UserError if one cannot be.

        Args:
            messages: The conversation.
            images: Functions that open its images, in order.
            max_new_tokens: Longest answer, in tokens.
            repeats: Copies of a piece that end the answer, as in `RepetitionGuard`. vLLM has no rule for longer loops.
        """
        encoded = [_encode(open_image()) for open_image in images]
        future: Future = Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = future
            limits = {"max_tokens": max_new_tokens, "repeats": repeats}
            self._send({"id": number, "messages": messages, "images": encoded, **limits})
        return VllmAnswer(future)

    def close(self) -> None:
        """End vLLM."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> "VllmModel":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise VllmEndedError(self._ended("has ended")) from None

    def _receive(self) -> None:
        """Hand out answers until vLLM ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            future = self._waiting.pop(answer["id"])
            if "error" in answer:
                future.set_exception(UserError(answer["error"]))
            else:
                future.set_result(VllmReply(answer["text"].strip(), answer["reason"], tuple(answer["tokens"])))
        with self._lock:
            for future in self._waiting.values():
                future.set_exception(VllmEndedError(self._ended("has ended")))

    def _ended(self, how: str) -> str:
        self._process.wait()
        self._messages.seek(0)
        last = self._messages.read().decode("utf-8", "replace").strip()[-SHOWN:]
        return f"vLLM {how}; its last lines: {last}"


@dataclass(frozen=True)
class VllmAnswer:
    """The answer to one request."""

    future: Future

    def result(self) -> VllmReply:
        """Wait for it. Raises UserError if vLLM refuses the request."""
        return self.future.result()


def _encode(image: Image.Image) -> str:
    with io.BytesIO() as encoded:
        image.save(encoded, "PNG", compress_level=1)
        return base64.b64encode(encoded.getvalue()).decode()
