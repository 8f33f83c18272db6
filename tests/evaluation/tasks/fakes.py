"""`mmchat eval` with a stand-in for the model, as a program: python -m tests.evaluation.tasks.fakes SECONDS eval ..."""

import sys
import time
from dataclasses import dataclass
from typing import Any

from mmchat.cli import job_options
from mmchat.cli.main import main


@dataclass(frozen=True)
class Reply:
    text: str
    reason: str = "end"
    ids: tuple = (1, 2)


@dataclass(frozen=True)
class Answer:
    reply: Reply

    def result(self) -> Reply:
        return self.reply


class FakeGenerator:
    """Answers yes or no by the colour of a pixel and the length of the question, after some seconds."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.asked: list[tuple[str, int]] = []

    def submit(self, messages: Any, images: Any, max_new_tokens: int, repeats: int) -> Answer:
        text = messages[0]["content"][-1]["text"]
        red = images[0]().getpixel((0, 0))[0]
        self.asked.append((text, red))
        time.sleep(self.seconds)
        return Answer(Reply("Yes" if (red + len(text)) % 3 else "No", "length" if red % 50 == 0 else "end"))

    def __enter__(self) -> "FakeGenerator":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def open_fake(seconds: float, *_: Any) -> FakeGenerator:
    return FakeGenerator(seconds)


if __name__ == "__main__":
    seconds = float(sys.argv[1])
    job_options.open_generator = lambda *_, **__: open_fake(seconds)
    sys.exit(main(sys.argv[2:]))
