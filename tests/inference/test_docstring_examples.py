"""The examples in docstrings run."""

import pytest

from mmchat.inference import generator
from mmchat.inference.engine import engine
from mmchat.model import modeling
from tests.docstring_examples import run_examples


@pytest.fixture
def folder(assistant_dir, make_image, tmp_path, monkeypatch):
    """The working directory that the examples assume."""
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "model").symlink_to(assistant_dir)
    for name in ("image.png", "page.png"):
        make_image(0).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)


def test_generator(folder):
    methods = ("chat", "stream", "caption", "read", "generate")
    run_examples(generator, "Generator", *(f"Generator.{name}" for name in methods))


def test_engine(folder):
    run_examples(engine, "Engine")


def test_repeat_rows():
    run_examples(modeling, "repeat_rows")
