"""`mmchat chat`: one question, or a conversation in the terminal."""

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmchat.command_line.arguments import number_from
from mmchat.command_line.options import add_max_new_tokens, add_model_directory
from mmchat.command_line.quick_imports import quick_imports
from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.errors import UserError
from mmchat.files import write_bytes, write_json
from mmchat.images import load_image
from mmchat.model_kinds import ASSISTANT

EXAMPLE = 'mmchat chat runs/quickstart/model --image image.png "How many digits are there?"'
HELP = """\
/image FILE   add an image to the next question
/system TEXT  instructions for the model; without text, its own
/undo         take back the last question and its answer
/save FILE    write the conversation as LLaVA's JSON, its images next to it
/new          start over
/quit         end, as quit, exit and Ctrl-D do; Ctrl-C stops an answer"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_directory(parser)
    parser.add_argument("question", metavar="QUESTION", nargs="?", help="without it, a conversation starts")
    parser.add_argument("--image", action="append", type=Path, default=[], metavar="FILE", help="repeat for several")
    add_max_new_tokens(parser, 128, "answer")
    parser.add_argument(
        "--temperature", type=number_from(0), default=0.0, metavar="T", help="0: greedy decoding; above 0: sampling"
    )


def run(arguments: argparse.Namespace) -> None:
    for path in arguments.image:
        load_image(path)
    directory = ASSISTANT.check_complete(arguments.checkpoint)
    with quick_imports():  # mistakes have been found
        from mmchat.inference.generator import Generator

    options = {"max_new_tokens": arguments.max_new_tokens, "temperature": arguments.temperature}
    with Generator(directory) as generator:
        talk = TerminalChat(generator, arguments.image, options)
        if arguments.question is None:
            talk.converse()
        else:
            talk.ask(arguments.question)


class TerminalChat:
    """A conversation in the terminal. Answers go to stdout, everything else to stderr.

    Args:
        generator: A `Generator`.
        images: Image files for the first question.
        options: Keywords of `Generator.submit`.
    """

    def __init__(self, generator: Any, images: list[Path], options: dict[str, Any]) -> None:
        self._generator, self._options = generator, options
        self._images = list(images)
        """Of all questions, and of the next one."""
        self._messages: list[dict[str, Any]] = []
        self._system = ""
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: note(HELP),
            "/image": self._add_image,
            "/system": self._set_system,
            "/undo": lambda _: self._undo(),
            "/save": self._save,
            "/new": lambda _: self._start_over(),
        }

    def converse(self) -> None:
        """Answer questions from stdin until it ends."""
        with suppress(ImportError):  # where Python has it, it lets people edit and recall lines
            import readline  # noqa: F401
        note("Ask away; /help lists the commands.")
        while True:
            try:
                line = input("you> ").strip()
            except EOFError:
                print()
                return
            if line in ("/quit", "/exit", "quit", "exit"):
                return
            try:
                self._obey(line)
            except UserError as error:
                note(str(error))

    def _obey(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name in self._commands:
            self._commands[name](rest.strip())
        elif name.startswith("/"):
            note(f"there is no command {name}; /help lists the commands")
        elif line:
            self.ask(line)

    def ask(self, question: str) -> None:
        """Print the answer to a question, piece by piece, and remember both. Ctrl-C ends the answer."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        messages, images = self._generator.conversation(question, self._images, self._messages)
        answer = self._generator.submit([*system, *messages], images, **self._options)
        try:
            for piece in answer:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            answer.cancel()
        print()
        reply = answer.result()
        if reply.reason == "length":
            note(self._cut(reply))
        self._messages = [*messages, {"role": "assistant", "content": reply.text}]

    def _cut(self, reply: Any) -> str:
        limit = self._options["max_new_tokens"]
        if len(reply.ids) < limit:
            return "[cut off: the context of the model is full; /new starts over]"
        return f"[cut off at {limit} tokens; --max-new-tokens sets the limit]"

    def _add_image(self, path: str) -> None:
        load_image(Path(path))
        self._images.append(Path(path))
        note(f"The next question is about {path}.")

    def _set_system(self, text: str) -> None:
        self._system = text
        note("The model's own system prompt is used." if not text else "The system prompt is set.")

    def _undo(self) -> None:
        if not self._messages:
            raise UserError("there is nothing to take back")
        asked = self._messages[-2]["content"]
        last = sum(part["type"] == "image" for part in asked)
        waiting = self._images[self._mentioned() :]
        self._images = self._images[: self._mentioned() - last] + waiting
        self._messages = self._messages[:-2]
        note(f"Taken back: {asked[-1]['text']}")

    def _mentioned(self) -> int:
        """Number of images of the questions that were asked."""
        asked = (message["content"] for message in self._messages if message["role"] == "user")
        return sum(part["type"] == "image" for content in asked for part in content)

    def _start_over(self) -> None:
        self._messages, self._images = [], []

    def _save(self, name: str) -> None:
        """Write a record in LLaVA's layout, and copies of the images into `NAME_images/`."""
        path = Path(name)
        if not name or path.suffix != ".json":
            raise UserError(f"/save needs the name of a .json file, found {name or 'none'}")
        if not self._messages:
            raise UserError("there is nothing to save yet")
        speech = [{"from": "system", "value": self._system}] if self._system else []
        speech += [_spoken(message) for message in self._messages]
        copies = []
        for number, image in enumerate(self._images[: self._mentioned()]):
            copies.append(f"{path.stem}_images/{number:03}{image.suffix.lower()}")
            write_bytes(path.parent / copies[-1], image.read_bytes())
        write_json(path, [{"id": path.stem, "conversations": speech} | ({"image": copies} if copies else {})])
        note(f"Saved to {path}.")


def _spoken(message: dict[str, Any]) -> dict[str, str]:
    """A message in LLaVA's dialect.

    Raises:
        UserError: A question holds the text `<image>`, which would be an image.
    """
    if message["role"] == "assistant":
        return {"from": "gpt", "value": message["content"]}
    *images, text = message["content"]
    if IMAGE_PLACEHOLDER in text["text"]:
        raise UserError(f"a question holds the text {IMAGE_PLACEHOLDER}, which LLaVA's JSON would read as an image")
    return {"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n" * len(images) + text["text"]}


def note(text: str) -> None:
    """Print to stderr, so that stdout has answers only."""
    print(text, file=sys.stderr)
