"""`mmchat serve` under load: latency, time to first token, memory over time, and whether answers cross.

Weights are random. Each case, an image and a question, is first asked alone. Then many clients ask random cases at the
same time, half of them as streams, and every answer must be the one that the case got alone. In the second half a few
clients read one byte at a time. README.md explains the output.

    python bench/serving.py
    python bench/serving.py --clients 8 --seconds 10
"""

import argparse
import asyncio
import base64
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import psutil
from side_by_side.model_shapes import SHAPES
from side_by_side.random_images import draw_clouds
from train import hardware, log

from mmchat.command_line.quiet import quiet_libraries
from mmchat.files import write_json

NAME = "load"
IMAGE = (160, 120)
SHORTEST, LONGEST = 8, 48
"""Tokens of an answer."""
SLOW_READ_SECONDS = 0.5
"""A slow client reads a byte this often."""
SETTLED_SECONDS = 30
"""From here on, memory should not grow."""


@dataclass
class Case:
    """A question about an image, and what the model answers when nobody else asks."""

    body: dict[str, Any]
    alone: str = ""


@dataclass
class Measured:
    """What the clients saw."""

    latency: list[tuple[float, float]] = field(default_factory=list)
    """When a request ended, in seconds of the run, and how long it took."""
    first_token: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    crossed: list[str] = field(default_factory=list)
    slow_bytes: int = 0
    cpu_seconds: float = 0.0
    """Of the server."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny", choices=SHAPES)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--slow-clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--questions", type=int, default=8, help="per image")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/serving.json"))
    arguments = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_assistant(folder, arguments.shape)
        cases = draw_cases(arguments.images, arguments.questions, SHAPES[arguments.shape].language["vocab_size"])
        with serving(folder / "model", arguments) as (process, url):
            measured, memory = asyncio.run(run(url, process, cases, arguments))
            metrics = httpx.get(f"{url}/metrics").text
    result = summary(measured, memory, cases, arguments)
    options = {**vars(arguments), "out": str(arguments.out)}
    written = {"line": line_of(result), "options": options, "hardware": hardware(), **result}
    write_json(arguments.out, {"date": time.strftime("%Y-%m-%d"), **written, "memory": memory, "metrics": metrics})
    print(line_of(result))
    if measured.errors or measured.crossed:
        sys.exit("\n".join([*measured.errors[:5], *measured.crossed[:5]]))


def write_assistant(folder: Path, shape: str) -> None:
    """An assistant with random weights in `model/`."""
    from side_by_side.workload import SLOT_TOKENS, write_model, write_tokenizer

    write_tokenizer(folder / "tokenizer", SHAPES[shape].language["vocab_size"] - SLOT_TOKENS)
    write_model(folder, SHAPES[shape])


def draw_cases(images: int, questions: int, vocabulary: int) -> list[Case]:
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(images):
        file = io.BytesIO()
        draw_clouds(rng, IMAGE).save(file, "JPEG")
        url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        for _ in range(questions):
            words = " ".join(f"w{number}" for number in rng.integers(0, vocabulary - 10, 6))
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": words}]
            longest = int(rng.integers(SHORTEST, LONGEST + 1))
            cases.append(
                Case({"model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": longest})
            )
    return cases


@contextmanager
def serving(model: Path, arguments: argparse.Namespace) -> Iterator[tuple[psutil.Process, str]]:
    """A server process that is ready, and its address."""
    command = [sys.executable, "-m", "mmchat.cli.main", "serve", str(model), "--port", "0", "--name", NAME]
    command += ["--slots", str(arguments.slots), "--device", "cpu", "--drain-seconds", "5"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://[\d.:]+", server.stdout.readline())
        if found is None or "ready" not in server.stdout.readline():
            sys.exit("the server did not start")
        yield psutil.Process(server.pid), found[0]
    finally:
        server.terminate()
        server.wait()


async def run(
    url: str, process: psutil.Process, cases: list[Case], arguments: argparse.Namespace
) -> tuple[Measured, list[tuple[float, float]]]:
    """The measurements of all clients, and the server's resident memory: seconds and MiB."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        log(f"asking {len(cases)} cases alone")
        for case in cases:
            case.alone = (await client.post("/v1/chat/completions", json=case.body)).json()["choices"][0]["message"][
                "content"
            ]
        log(f"{arguments.clients} clients for {arguments.seconds:g} s")
        measured, start, spent = Measured(), time.monotonic(), sum(process.cpu_times()[:2])
        end = start + arguments.seconds
        memory: list[tuple[float, float]] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(watch_memory(process, start, end, memory))
            for number in range(arguments.clients):
                group.create_task(ask_until(client, cases, random.Random(number), start, end, measured))
            for number in range(arguments.slow_clients):
                group.create_task(read_slowly(url, cases[number], start + arguments.seconds / 2, end, measured))
        measured.cpu_seconds = sum(process.cpu_times()[:2]) - spent
    return measured, memory


async def watch_memory(process: psutil.Process, start: float, end: float, memory: list[tuple[float, float]]) -> None:
    while (now := time.monotonic()) < end:
        memory.append((round(now - start, 1), round(process.memory_info().rss / 2**20, 1)))
        await asyncio.sleep(1)


async def ask_until(
    client: httpx.AsyncClient, cases: list[Case], rng: random.Random, start: float, end: float, measured: Measured
) -> None:
    """One client: the next request begins when the last one is answered."""
    while time.monotonic() < end:
        case = rng.choice(cases)
        begun = time.monotonic()
        try:
            ask = ask_stream if rng.random() < 0.5 else ask_whole
            text = await ask(client, case, begun, measured)
        except Exception as error:
            measured.errors.append(f"{type(error).__name__}: {error}")
            continue
        now = time.monotonic()
        measured.latency.append((now - start, now - begun))
        if text != case.alone:
            measured.crossed.append(f"{text!r} in place of {case.alone!r}")


async def ask_whole(client: httpx.AsyncClient, case: Case, begun: float, measured: Measured) -> str:
    response = await client.post("/v1/chat/completions", json=case.body)
    if response.status_code != 200:
        raise RuntimeError(response.text)
    answer = response.json()
    measured.tokens += answer["usage"]["completion_tokens"]
    return answer["choices"][0]["message"]["content"]


async def ask_stream(client: httpx.AsyncClient, case: Case, begun: float, measured: Measured) -> str:
    body = {**case.body, "stream": True, "stream_options": {"include_usage": True}}
    text, done = "", False
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError((await response.aread()).decode())
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                done = True
            elif data:
                event = json.loads(data)
                if event["usage"]:
                    measured.tokens += event["usage"]["completion_tokens"]
                for choice in event["choices"]:
                    piece = choice["delta"].get("content") or ""
                    if piece and not text:
                        measured.first_token.append(time.monotonic() - begun)
                    text += piece
    if not done:
        raise RuntimeError("a stream ended without [DONE]")
    return text


async def read_slowly(url: str, case: Case, start: float, end: float, measured: Measured) -> None:
    """A client that reads a byte now and then."""
    await asyncio.sleep(max(0.0, start - time.monotonic()))
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({**case.body, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(host, int(port), limit=64)
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    while time.monotonic() < end and (byte := await reader.read(1)):
        measured.slow_bytes += len(byte)
        await asyncio.sleep(SLOW_READ_SECONDS)
    writer.close()


def summary(
    measured: Measured, memory: list[tuple[float, float]], cases: list[Case], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Figures of a run."""
    half = arguments.seconds / 2
    taken = [seconds for _, seconds in measured.latency]
    settled = [mib for second, mib in memory if second >= min(SETTLED_SECONDS, half)]
    return {
        "requests": len(taken),
        "different_answers": len({case.alone for case in cases}),
        "errors": len(measured.errors),
        "crossed": len(measured.crossed),
        "latency": percentiles(taken),
        "first_token": percentiles(measured.first_token),
        "latency_with_slow_clients": percentiles([seconds for ended, seconds in measured.latency if ended > half]),
        "latency_without": percentiles([seconds for ended, seconds in measured.latency if ended <= half]),
        "tokens_per_second": round(measured.tokens / arguments.seconds, 1),
        "cpu_ms_per_token": round(1000 * measured.cpu_seconds / measured.tokens, 3),
        "slow_bytes": measured.slow_bytes,
        "memory_when_settled": settled[0],
        "memory_largest": max(settled),
        "memory_at_end": settled[-1],
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"median": round(median(seconds), 3), "p99": round(float(np.percentile(seconds, 99)), 3)}


def line_of(result: dict[str, Any]) -> str:
    latency, first = result["latency"], result["first_token"]
    slow, without = result["latency_with_slow_clients"], result["latency_without"]
    return (
        f"{result['requests']} requests, {result['errors']} errors, {result['crossed']} crossed; "
        f"latency {latency['median']:.2f} s (p99 {latency['p99']:.2f}), first token {first['median']:.2f} s "
        f"(p99 {first['p99']:.2f}), {result['tokens_per_second']:.0f} tokens/s, "
        f"{result['cpu_ms_per_token']:.2f} ms of CPU per token; "
        f"with slow clients {slow['median']:.2f} s (p99 {slow['p99']:.2f}), without {without['median']:.2f} s "
        f"(p99 {without['p99']:.2f}); memory {result['memory_when_settled']:.0f} MiB when settled, "
        f"{result['memory_largest']:.0f} at most, {result['memory_at_end']:.0f} at the end"
    )


if __name__ == "__main__":
    main()
