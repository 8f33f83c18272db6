"""The demo in a real browser: a subprocess serves it with a tiny model, Chromium uploads images and asks."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from browser import CHROMEDRIVER, CHROMIUM, answered, ask, browsing, bubbles, press, requested, thumbnails, until
from PIL import Image
from selenium.webdriver.common.by import By

from mmchat.model.assembly import assemble
from mmchat.model.directory import save_assistant
from mmchat.vision import load_tower

REPOSITORY = Path(__file__).parents[2]
TOKENIZER = REPOSITORY / "tests/fixtures/tokenizers/llama_like_legacy_false"
TOWER = {
    "family": "clip_vit",
    "backbone": {
        "image_size": 32,
        "patch_size": 16,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "fit": "squash"},
}
LANGUAGE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
MARKUP = ["▁<", "b", ">"]
FAILURE = "the accelerator <i>caught</i> fire"

# The app, with a generator that logs its calls, is slow, and fails when asked to.
SERVE = f"""
import json, runpy, sys, time
from mmchat.inference import Generator
stream = Generator.stream
def watched(self, question, images=(), history=(), **options):
    call = {{"question": question, "images": len(images), "history": history, **options}}
    print(json.dumps(call), file=open("calls.jsonl", "a"), flush=True)
    for piece in stream(self, question, images, history, **options):
        time.sleep(0.04)
        yield piece
        if question == "fail":
            raise RuntimeError({FAILURE!r})
Generator.stream = watched
sys.argv = ["demo/app.py", *sys.argv[1:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def recite(model, tokenizer) -> str:
    """Set the head so that every token predicts the next one of a fixed text; returns the text."""
    words = [word for word in sorted(tokenizer.get_vocab()) if word[0] == "▁" and len(word) > 3 and word[1:].isalpha()]
    chain = [":", *words[:8], *MARKUP, *words[8:24], "</s>"]
    ids = tokenizer.convert_tokens_to_ids(chain)
    assert len(set(ids)) == len(ids)
    with torch.no_grad():
        embedding = model.language_model.get_input_embeddings().weight.mul_(50)
        head = model.language_model.get_output_embeddings().weight.zero_()
        head[ids[1:]] = embedding[ids[:-1]]
    return tokenizer.decode(ids[1:-1]).strip()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the demo, a model and held-out images; and the text that the model generates."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(REPOSITORY / "demo", root / "demo", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "tower.json").write_text(json.dumps(TOWER))
    (root / "language.json").write_text(json.dumps(LANGUAGE))
    tower = load_tower(root / "tower.json")
    model, processor = assemble(str(root / "language.json"), [tower], "linear", "vicuna_v1", tokenizer=str(TOKENIZER))
    reply = recite(model, processor.tokenizer)
    (root / "runs/quickstart").mkdir(parents=True)
    save_assistant(model, processor, root / "runs/quickstart/model")
    heldout = root / "data/quickstart/heldout"
    heldout.mkdir(parents=True)
    for number, color in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), color).save(heldout / f"{number:06}.png")
    return root, reply


def start(root: Path, *words: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GRADIO_TEMP_DIR": str(root / "uploads")}
    return subprocess.Popen(
        [sys.executable, *words], cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture(scope="module")
def served(site):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start(site[0], "-c", SERVE, "--port", str(port))
    line = process.stdout.readline()
    assert f"http://127.0.0.1:{port}" in line, line + process.stderr.read()
    yield f"http://127.0.0.1:{port}/"
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def opened(served, tmp_path_factory):
    if not (CHROMIUM and CHROMEDRIVER):
        reason = "no chromium and chromedriver here (scripts/test.sh installs them where it can)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with browsing(served, tmp_path_factory.mktemp("profile"), 1280, 800) as page:
        yield page


@pytest.fixture
def page(opened, site):
    """An empty chat and an empty log of calls."""
    if bubbles(opened, "user"):
        press(opened, "New chat")
        until(opened, lambda: not bubbles(opened, "user"))
    (site[0] / "calls.jsonl").unlink(missing_ok=True)
    return opened


def calls(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "calls.jsonl").read_text().splitlines()]


def image(root: Path) -> Path:
    return root / "data/quickstart/heldout/000000.png"


def test_an_answer_about_an_image_is_streamed(page, site):
    root, reply = site
    question = "<b>How</b> many? <script>document.title='broken'</script> <imgpad> & &lt; **x**"
    ask(page, question, image(root))
    seen = answered(page)
    assert bubbles(page, "user")[-1] == question
    assert page.title == "mmchat"
    assert bubbles(page, "bot") == [reply] and "<b>" in reply
    assert len(seen) > 5 and all(reply.startswith(part) for part in seen)

    ask(page, "And now?", root / "data/quickstart/heldout/000001.png")
    answered(page)
    ask(page, "And without an image?")
    answered(page)
    first, second, third = calls(root)
    assert (first["question"], first["images"], first["history"]) == (question, 1, [])
    assert second["images"] == third["images"] == 2
    assert [turn["role"] for turn in third["history"]] == ["user", "assistant"] * 2
    assert third["history"][1]["content"] == reply
    strangers = [url for url in requested(page) if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert not strangers


def test_a_question_without_any_image(page, site):
    ask(page, "Hello?")
    answered(page)
    assert bubbles(page, "bot") == [site[1]]
    assert calls(site[0])[0]["images"] == 0


def test_an_example_is_asked_with_its_image(page, site):
    page.find_element(By.CSS_SELECTOR, "button.example").click()
    answered(page)
    assert bubbles(page, "bot") == [site[1]]
    assert calls(site[0])[0]["images"] == 1


def test_stop_keeps_the_partial_answer_and_the_chat_continues(page, site):
    root, reply = site
    ask(page, "Go on")
    until(page, lambda: "".join(bubbles(page, "bot")))
    page.find_element(By.CSS_SELECTOR, ".stop-button").click()
    until(page, lambda: page.find_elements(By.CSS_SELECTOR, ".submit-button"))
    time.sleep(0.5)
    (part,) = bubbles(page, "bot")
    assert reply.startswith(part) and part != reply
    ask(page, "Again")
    answered(page)
    assert bubbles(page, "bot")[-1] == reply
    assert calls(root)[1]["history"][1]["content"] == part


def test_a_new_chat_stops_the_answer_and_clears_the_history(page, site):
    root, reply = site
    ask(page, "Go on", image(root))
    until(page, lambda: "".join(bubbles(page, "bot")))
    press(page, "New chat")
    until(page, lambda: not bubbles(page, "bot") and page.find_elements(By.CSS_SELECTOR, ".submit-button"))
    time.sleep(0.5)
    assert not bubbles(page, "user") and not bubbles(page, "bot")
    ask(page, "Again")
    answered(page)
    assert bubbles(page, "bot") == [reply]
    assert (calls(root)[1]["images"], calls(root)[1]["history"]) == (0, [])


def test_a_failure_shows_its_own_message_and_returns_the_question(page, site):
    root, reply = site
    ask(page, "fail", image(root))
    answered(page)
    assert bubbles(page, "bot") == [f"⚠ RuntimeError: {FAILURE}"]
    box = page.find_element(By.CSS_SELECTOR, "textarea")
    assert box.get_attribute("value") == "fail" and len(thumbnails(page)) == 1
    box.clear()
    ask(page, "What now?")
    answered(page)
    assert bubbles(page, "bot")[-1] == reply
    assert (calls(root)[-1]["images"], calls(root)[-1]["history"]) == (1, [])


def test_a_broken_image_is_named(page, site, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"this is no image")
    ask(page, "What is it?", broken)
    answered(page)
    assert bubbles(page, "bot") == ["⚠ image broken.png is not in a format that Pillow can read"]


def test_mistakes_on_the_command_line_are_one_line(site, served):
    root, _ = site
    port = served.rstrip("/").rpartition(":")[2]
    attempts = (["--model", "nowhere"], ["--port", port])
    running = [start(root, "demo/app.py", *words) for words in attempts]
    (_, missing), (_, busy) = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [2, 2]
    assert "nowhere" in missing and "scripts/quickstart.sh" in missing and missing.count("\n") == 1
    assert f"127.0.0.1:{port}" in busy and "--port" in busy and busy.count("\n") == 1
