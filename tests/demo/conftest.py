"""A folder with two tiny models, a running demo, and a browser that is shared by all tests."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

DEMO = Path(__file__).parents[2] / "demo"
if str(DEMO) not in sys.path:  # its package is next to its program, which is not installed
    sys.path.append(str(DEMO))


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A folder with the demo, the models "quickstart" and "other", and held-out images; and what the models answer."""
    from tiny_site import LANGUAGE, TOKENIZER, TOWER, recite

    from mmchat.model.assembly import assemble
    from mmchat.model.directory import save_assistant
    from mmchat.vision import load_tower

    root = tmp_path_factory.mktemp("site")
    shutil.copytree(DEMO, root / "demo", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "tower.json").write_text(json.dumps(TOWER))
    (root / "language.json").write_text(json.dumps(LANGUAGE))
    replies = []
    for first, name in ((0, "quickstart"), (30, "other")):
        tower = load_tower(root / "tower.json")
        model, processor = assemble(
            str(root / "language.json"), [tower], "linear", "vicuna_v1", tokenizer=str(TOKENIZER)
        )
        replies.append(recite(model, processor.tokenizer, first))
        (root / "runs" / name).mkdir(parents=True)
        save_assistant(model, processor, root / "runs" / name / "model")
    heldout = root / "data/quickstart/heldout"
    heldout.mkdir(parents=True)
    for number, color in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), color).save(heldout / f"{number:06}.png")
    return root, *replies


@pytest.fixture(scope="session")
def served(site):
    from tiny_site import SERVE, start

    from mmchat.training.distributed.launch import free_port

    port = free_port()
    models = ("--model", "runs/quickstart/model", "--model", "runs/other/model")
    limits = ("--feedback", "feedback", "--max-file-mb", "1", "--max-new-tokens", "200")
    process = start(site[0], "-c", SERVE, "--port", str(port), *models, *limits)
    line = process.stdout.readline()
    assert f"http://127.0.0.1:{port}" in line, line + process.stderr.read()
    yield f"http://127.0.0.1:{port}/"
    process.terminate()
    process.wait(20)
    assert not list((site[0] / "uploads").iterdir())


@pytest.fixture(scope="session")
def browser(served, tmp_path_factory):
    """browser(width, height, dark): opens the demo in a browser of its own."""
    from browser import CHROMEDRIVER, CHROMIUM, browsing

    if not (CHROMIUM and CHROMEDRIVER):
        reason = "no chromium and chromedriver here (scripts/test.sh installs them where it can)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)

    def open_browser(width=1280, height=800, dark=False, url=served):
        return browsing(url, tmp_path_factory.mktemp("profile"), width, height, dark)

    return open_browser


@pytest.fixture(scope="session")
def opened(browser):
    with browser() as page:
        yield page


@pytest.fixture
def page(opened, site):
    """The page as a new tab has it, and an empty log of calls."""
    from browser import fresh

    fresh(opened)
    (site[0] / "calls.jsonl").unlink(missing_ok=True)
    return opened
