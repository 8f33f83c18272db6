"""The process: when it is ready, how it stops, and what keeps it from starting."""

import argparse
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import httpx
import pytest

from mmchat.cli.serve import model_name
from mmchat.command_line.arguments import number_from
from mmchat.command_line.listening import listen
from mmchat.errors import UserError
from mmchat.serving.server import serve
from mmchat.serving.settings import ServeSettings
from tests.launching import ROOT
from tests.serving.fakes import FakeAssistant, until
from tests.serving.live import MODEL, running

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "abc" * 20}]}


@contextmanager
def process(pace: float, drain: float):
    """A server process and its address. It is killed at the end, if it still runs."""
    command = [sys.executable, "-m", "tests.serving.fake_server", "0", str(pace), str(drain)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://[\d.:]+", server.stdout.readline())[0]
        assert server.stdout.readline() == "mmchat serve: ready\n"
        yield server, url
    finally:
        server.kill()
        server.communicate()


def in_flight(url: str) -> float:
    """Answers that are queued or being made."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    names = ("mmchat_answers_queued ", "mmchat_answers_running ")
    return sum(float(line.partition(" ")[2]) for line in lines if line.startswith(names))


def test_sigterm_ends_what_runs_and_refuses_what_is_new():
    with process(pace=0.2, drain=40) as (server, url), httpx.Client(base_url=url, timeout=20) as client:
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(httpx.post, f"{url}/v1/chat/completions", json=BODY, timeout=20) for _ in range(4)]
            with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as stream:
                pieces = stream.iter_bytes()
                next(pieces)
                assert until(lambda: in_flight(url) == 5)
                server.send_signal(signal.SIGTERM)
                assert until(lambda: httpx.get(f"{url}/ready").status_code == 503)
                refused = httpx.post(f"{url}/v1/chat/completions", json=BODY)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_draining")
                assert httpx.get(f"{url}/health").status_code == 200
                assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
            assert [answer.result().status_code for answer in answers] == [200] * 4
        assert server.wait(20) == 0
        assert "5 running requests" in server.stdout.read()
        assert server.stderr.read() == ""


def test_a_drain_ends_in_bounded_time():
    with process(pace=1.0, drain=0.5) as (server, url), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{url}/v1/chat/completions", json=BODY, timeout=20)
        assert until(lambda: in_flight(url) == 1)
        started = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert time.monotonic() - started < 15
        assert answer.result().status_code == 503
        assert answer.result().json()["error"]["code"] == "server_stopping"


def test_a_second_signal_ends_the_drain():
    with process(pace=1.0, drain=60) as (server, url), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{url}/v1/chat/completions", json=BODY, timeout=20)
        assert until(lambda: in_flight(url) == 1)
        server.send_signal(signal.SIGINT)
        assert until(lambda: httpx.get(f"{url}/ready").status_code == 503)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert answer.result().status_code == 503


def test_it_is_up_before_it_is_ready():
    first_token = Event()

    class Slow(FakeAssistant):
        def chat(self, *args, **options):
            assert first_token.wait(30)
            return super().chat(*args, **options)

    with running(Slow(), wait=False) as live:
        assert live.client.get("/health").json() == {"status": "ok"}
        early = live.client.get("/ready")
        assert (early.status_code, early.json()["error"]["code"]) == (503, "server_loading")
        assert live.chat().status_code == 503
        assert live.client.get("/v1/models").status_code == 200
        first_token.set()
        assert until(lambda: live.client.get("/ready").status_code == 200)
        assert live.chat().status_code == 200


def test_a_model_that_crashes_is_reported():
    with running() as live:
        live.assistant.broken = RuntimeError("the engine is closed")
        response = live.chat()
        assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
        assert "engine" not in response.text
        assert live.client.get("/ready").status_code == 503
        assert live.client.get("/health").status_code == 500
        assert 'route="/v1/chat/completions",status="500"} 1' in live.client.get("/metrics").text
        assert live.service.answers.held == 0


def test_an_option_that_the_model_refuses_is_the_callers_mistake():
    with running() as live:
        live.assistant.broken = UserError("top_k must be at least 0")
        assert live.chat().status_code == 400
        assert live.client.get("/ready").status_code == 200


def test_a_model_that_cannot_be_loaded_ends_the_process(capsys):
    def broken():
        raise UserError("the model directory is damaged")

    with pytest.raises(UserError, match="damaged"):
        serve(ServeSettings(MODEL, port=0), broken, say=lambda line: None)


def test_a_port_in_use_is_one_message():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for host, number in (("127.0.0.1", port), ("127.0.0.1", 99999), ("no.such.host.invalid", 8000)):
            with pytest.raises(UserError, match=r"cannot listen on .* set another --port"):
                listen(host, number)


@pytest.mark.parametrize(
    ("path", "name"),
    [("runs/quickstart/model", "quickstart"), ("runs/llava", "llava"), ("user/name", "name"), ("/model", "model")],
)
def test_a_model_is_called_after_its_folder(path, name):
    assert model_name(Path(path)) == name


def test_numbers_of_options():
    assert number_from(0)("2.5") == 2.5
    for text in ("-1", "nan", "inf", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a number"):
            number_from(0)(text)
