"""The browser demo with many visitors: how long each waits for an answer, at once and one after another.

Each visitor has an image and a question. First all ask at the same moment. Then the next asks when the one before has
the whole answer, although all wanted to ask at the start, as in a demo that answers one visitor at a time. Both times
each must get the same answer. README.md explains the output.

    python bench/visitors.py
    python bench/visitors.py --model runs/quickstart/model --visitors 8
"""

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from gradio_client import Client, handle_file
from serving import percentiles, write_assistant
from side_by_side.model_shapes import SHAPES
from side_by_side.random_images import draw_clouds
from train import hardware, log

from mmchat.command_line.quiet import quiet_libraries
from mmchat.files import write_json

IMAGE = (320, 240)
GREEDY = (0.0, 1.0, 1.0, -1)
"""Temperature, top-p, repetition penalty and seed in the demo's settings."""


@dataclass
class Answered:
    """What a visitor saw, in seconds after the start."""

    text: str
    first: float
    last: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory; without it, random weights of --shape")
    parser.add_argument("--shape", default="tiny", choices=SHAPES)
    parser.add_argument("--visitors", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48, help="longest answer")
    parser.add_argument("--question", default="w1 w2 w3", help="w1 is a word of the random model")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/visitors.json"))
    arguments = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.model is None:
            write_assistant(folder, arguments.shape)
        images = draw_images(folder / "images", arguments.visitors + 1)
        with serving(arguments.model or folder / "model") as (process, url):
            log(f"{arguments.visitors} visitors open the page")
            clients = [open_page(url, number) for number in range(arguments.visitors + 1)]
            ask(clients.pop(), arguments, images.pop(), time.monotonic())  # warms up
            spent = [cpu_seconds(process)]
            at_once = ask_at_once(clients, arguments, images)
            spent.append(cpu_seconds(process))
            in_turn = ask_in_turn(clients, arguments, images)
            spent.append(cpu_seconds(process))
    result = summary(at_once, in_turn, spent)
    options = {key: str(value) for key, value in vars(arguments).items()}
    date = time.strftime("%Y-%m-%d")
    write_json(
        arguments.out, {"date": date, "line": line_of(result), "options": options, "hardware": hardware(), **result}
    )
    print(line_of(result))
    if result["different"]:
        sys.exit("answers differ between the two ways")


def draw_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:03}.jpg" for number in range(count)]
    for path in paths:
        draw_clouds(rng, IMAGE).save(path)
    return paths


@contextmanager
def serving(model: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A demo in a process of its own, and its address."""
    command = [sys.executable, "-m", "mmchat.cli.main", "demo", "--model", str(model), "--port", "0"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert demo.stdout is not None
        found = re.search(r"http://[\d.:]+", demo.stdout.readline())
        if found is None:
            sys.exit("the demo did not start")
        yield psutil.Process(demo.pid), found[0]
    finally:
        demo.terminate()
        demo.wait()


def cpu_seconds(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def open_page(url: str, number: int) -> Client:
    """A visitor with an address of its own, as a proxy on the same machine reports it."""
    headers = {"x-forwarded-for": f"10.0.{number // 250}.{number % 250 + 1}"}
    options = {"verbose": False, "analytics_enabled": False, "download_files": False}
    return Client(url, headers=headers, httpx_kwargs={"timeout": 300}, **options)


def ask(client: Client, arguments: argparse.Namespace, image: Path, start: float) -> Answered:
    """Begin a chat, upload an image, ask and read the whole answer."""
    client.predict(api_name="/new_chat")
    message = {"text": arguments.question, "files": [handle_file(str(image))]}
    client.predict(message, "", api_name="/submit")
    answer = client.submit(*GREEDY, arguments.tokens, api_name="/answer_side")
    text, first = "", 0.0
    for messages, *_ in answer:
        if said := answer_of(messages):
            text, first = said, first or time.monotonic() - start
    return Answered(text, first, time.monotonic() - start)


def answer_of(messages: Any) -> str:
    """The text of the last bubble if it is an answer."""
    if not isinstance(messages, list) or not messages or messages[-1]["role"] != "assistant":
        return ""
    content = messages[-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def ask_at_once(clients: list[Client], arguments: argparse.Namespace, images: list[Path]) -> list[Answered]:
    log("all ask at once")
    ready = threading.Barrier(len(clients))

    def visit(client: Client, image: Path) -> Answered:
        ready.wait()
        return ask(client, arguments, image, time.monotonic())

    with ThreadPoolExecutor(len(clients)) as threads:
        return list(threads.map(visit, clients, images))


def ask_in_turn(clients: list[Client], arguments: argparse.Namespace, images: list[Path]) -> list[Answered]:
    log("one after another")
    start = time.monotonic()
    return [ask(client, arguments, image, start) for client, image in zip(clients, images, strict=True)]


def summary(at_once: list[Answered], in_turn: list[Answered], spent: list[float]) -> dict[str, Any]:
    """Figures of a run.

    Args:
        at_once: What visitors saw who asked at once.
        in_turn: The same visitors, one after another.
        spent: CPU seconds of the demo before, between and after.
    """
    ways = {"at_once": at_once, "one_at_a_time": in_turn}
    return {
        "visitors": len(at_once),
        "different": sum(one.text != other.text for one, other in zip(at_once, in_turn, strict=True)),
        "different_answers": len({one.text for one in at_once}),
        "alone": round(in_turn[-1].last / len(in_turn), 3),
        "wait": {name: percentiles([one.last for one in way]) for name, way in ways.items()},
        "cpu_per_answer": {
            name: round((after - before) / len(at_once), 3)
            for name, (before, after) in zip(ways, pairwise(spent), strict=True)
        },
        "first_text": {name: percentiles([one.first for one in way]) for name, way in ways.items()},
    }


def line_of(result: dict[str, Any]) -> str:
    wait, first, cpu = result["wait"], result["first_text"], result["cpu_per_answer"]
    return (
        f"{result['visitors']} visitors, {result['different']} answers differ; at once: answer after "
        f"{wait['at_once']['median']:.2f} s (p99 {wait['at_once']['p99']:.2f}), first text after "
        f"{first['at_once']['median']:.2f} s, {cpu['at_once']:.2f} s of CPU each; one at a time: "
        f"{wait['one_at_a_time']['median']:.2f} s (p99 {wait['one_at_a_time']['p99']:.2f}), {result['alone']:.2f} s "
        f"and {cpu['one_at_a_time']:.2f} s of CPU each"
    )


if __name__ == "__main__":
    main()
