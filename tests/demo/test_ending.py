"""Ctrl-C and SIGTERM end the demo in the middle of an answer."""

import shutil
import signal
import time

import pytest
from test_app import image
from tiny_site import patient_client, start

from mmchat.training.distributed.launch import free_port

pytestmark = pytest.mark.slow

# The app, with a model whose every step takes a second outside of Python, as those of large models do.
SERVE = """
import os, runpy, sys, torch
from mmchat.inference import generator
load = generator.load_assistant
def load_heavy(*words, **options):
    model, processor = load(*words, **options)
    matrix = torch.randn(600, 600)
    model.language_model.register_forward_pre_hook(lambda *_: [torch.linalg.svd(matrix) for _ in range(4)] and None)
    return model, processor
generator.load_assistant = load_heavy
sys.argv = ["demo/app.py", *sys.argv[1:]]
sys.path.insert(0, os.path.abspath("demo"))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_during_an_answer(site, tmp_path, number, status):
    for name in ("demo", "runs"):
        (tmp_path / name).symlink_to(site[0] / name)
    port = free_port()
    process = start(tmp_path, "-c", SERVE, "--port", str(port))
    try:
        assert f":{port}" in process.stdout.readline()
        client = patient_client(f"http://127.0.0.1:{port}")
        client.predict({"text": "Go on", "files": []}, "", api_name="/submit")
        shutil.copy(image(site[0]), next((tmp_path / "uploads").iterdir()))  # one that was not sent
        answer = client.submit(0, 1, 1, -1, 100, api_name="/answer_side")
        next(iter(answer))
        time.sleep(1)
        process.send_signal(number)
        assert process.wait(10) == status
        assert not list((tmp_path / "uploads").iterdir())
        assert process.stderr.read() == ("interrupted\n" if number == signal.SIGINT else "")
    finally:
        process.kill()
        process.wait()
