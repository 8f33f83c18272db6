"""`mmchat chat`: one question, or a conversation in the terminal."""

import argparse
import sys
from pathlib import Path
from typing import Any

from mmchat.command_line.options import add_max_new_tokens, add_model_directory
from mmchat.errors import UserError
from mmchat.images import load_image

EXAMPLE = 'mmchat chat runs/quickstart/model --image image.png "How many digits are there?"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_directory(parser)
    parser.add_argument("question", metavar="QUESTION", nargs="?", help="without it, a conversation starts")
    parser.add_argument("--image", action="append", type=Path, default=[], metavar="FILE", help="repeat for several")
    add_max_new_tokens(parser, 128, "answer")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy decoding; above 0: sampling")


def run(arguments: argparse.Namespace) -> None:
    images = [load_image(path) for path in arguments.image]
    from mmchat.inference.generator import Generator

    generator = Generator(arguments.checkpoint)
    options = {"max_new_tokens": arguments.max_new_tokens, "temperature": arguments.temperature}
    if arguments.question is None:
        converse(generator, images, options)
        return
    for piece in generator.stream(arguments.question, images, **options):
        print(piece, end="", flush=True)
    print()


def converse(generator: Any, images: list, options: dict[str, Any]) -> None:
    """Answer questions from stdin until it ends; `/image FILE`, `/new` and `/quit` are commands."""
    history: list[dict] = []
    print("Ask away. /image FILE adds an image, /new starts over, /quit ends.", file=sys.stderr)
    while True:
        try:
            line = input("you> ").strip()
        except EOFError:
            print()
            return
        if line == "/quit":
            return
        if line == "/new":
            history, images = [], []
        elif line.startswith("/image"):
            try:
                images = [*images, load_image(Path(line.removeprefix("/image").strip()))]
            except UserError as error:
                print(error, file=sys.stderr)
        elif line:
            messages, _ = generator.conversation(line, images, history)
            answer = []
            for piece in generator.stream(line, images, history, **options):
                print(piece, end="", flush=True)
                answer.append(piece)
            print()
            history = [*messages, {"role": "assistant", "content": "".join(answer).strip()}]
