"""Shared fixtures: a separate cache, and ten records and the command of the doctor tests."""

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.data.doctoring import command, ten_records


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def png() -> bytes:
    """A PNG of 40 x 30 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def records(tmp_path) -> Path:
    return ten_records(tmp_path)


@pytest.fixture
def run(capsys):
    """run(*words) -> (exit status, stdout, stderr) of `mmchat data check`"""
    return lambda *words: command(capsys, *words)
