"""The examples in docstrings run."""

import doctest

import pytest

from mmchat.inference import generator
from mmchat.model import modeling


def run_examples(module, names):
    """Run the examples of these objects in order, as one session."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {test.name.removeprefix(f"{module.__name__}."): test for test in finder.find(module)}
    session = {**vars(module)}
    runner = doctest.DocTestRunner()
    for name in names:
        found[name].globs = session
        assert found[name].examples, f"{name} has no example"
        runner.run(found[name], clear_globs=False)
    assert runner.summarize().failed == 0


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
    run_examples(generator, ["Generator", *(f"Generator.{name}" for name in methods)])


def test_repeat_rows():
    run_examples(modeling, ["repeat_rows"])
