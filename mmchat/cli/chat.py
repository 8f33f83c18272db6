"""`mmchat chat`: one question, or a conversation at a prompt."""

import argparse
import sys
from pathlib import Path

from mmchat.errors import UserError
from mmchat.images import load_image


def add_commands(add) -> None:
    chat = add(
        "chat",
        "ask about images, once or in a conversation",
        'mmchat chat runs/quickstart/model --image image.png "How many digits are there?"',
    )
    chat.add_argument("checkpoint", metavar="CKPT", type=Path, help="model directory")
    chat.add_argument("question", nargs="?", help="not given: an interactive prompt that remembers the conversation")
    chat.add_argument("--image", action="append", type=Path, default=[], help="image; repeat for several")
    chat.add_argument("--max-new-tokens", type=int, default=128, help="longest answer")
    chat.add_argument("--temperature", type=float, default=0.0, help="0 is greedy; above, answers are sampled")
    chat.set_defaults(run=run_chat)


def run_chat(arguments: argparse.Namespace) -> None:
    images = [load_image(path) for path in arguments.image]
    from mmchat.inference.generator import Generator

    generator = Generator(arguments.checkpoint)
    options = {"max_new_tokens": arguments.max_new_tokens, "temperature": arguments.temperature}
    if arguments.question is not None:
        for piece in generator.stream(arguments.question, images, **options):
            print(piece, end="", flush=True)
        print()
        return
    converse(generator, images, options)


def converse(generator, images: list, options: dict) -> None:
    """Read questions until end of input; `/image PATH` adds an image, `/new` forgets, `/quit` ends."""
    history: list[dict] = []
    print("Ask away. /image PATH adds an image, /new starts over, /quit ends.", file=sys.stderr)
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
