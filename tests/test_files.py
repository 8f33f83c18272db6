"""Small files and durations: what several packages rely on."""

import errno
import os
import resource
import signal
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from safetensors import SafetensorError

from mmchat.command_line.errors import reporting
from mmchat.data import storage
from mmchat.errors import UserError
from mmchat.files import (
    append_json_line,
    atomic_file,
    read_json_lines,
    read_json_object,
    split_complete_lines,
    staged_directory,
    write_text,
)
from mmchat.images import image_size, load_image
from mmchat.inference.jobs.items import Item, Outcome
from mmchat.inference.jobs.journal import Journal
from mmchat.inference.jobs.sources import Options, Sources
from mmchat.inference.pages import list_pages
from mmchat.progress import format_duration
from mmchat.training.checkpoints.storage import list_checkpoints, step_name, step_of
from mmchat.training.monitoring.metrics import MetricsLog
from mmchat.training.run_dir_lock import locked


@pytest.fixture
def special(tmp_path):
    """A pipe that nobody writes to, a device that never ends; a test that waits for them fails after 5 s."""

    def waited(*_):
        raise TimeoutError("waited for a pipe or a device")

    os.mkfifo(tmp_path / "pipe.png")
    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(5)
    yield {"a pipe": tmp_path / "pipe.png", "a device": Path("/dev/zero")}
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
@pytest.mark.parametrize(
    "read",
    [
        load_image,
        image_size,
        lambda path: storage.open_binary(str(path)),
        lambda path: storage.read_bytes(str(path)),
        lambda path: Sources([path], Options()),
        lambda path: list_pages(path, 72)[0].open(),
        read_json_object,
    ],
    ids=["chat", "size", "table", "bytes", "caption", "ocr", "json"],
)
def test_a_pipe_or_device_is_refused_and_not_waited_for(special, kind, read):
    with pytest.raises(UserError, match=f"{special[kind]} is {kind}, expected a regular file"):
        read(special[kind])


@pytest.fixture
def full_disk():
    """Inside the `with` nothing can be written, as on a full disk: files may have no bytes."""

    @contextmanager
    def full():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


def write_staged(path):
    with staged_directory(path) as aside:
        write_text(aside / "config.json", "{}")


WRITERS = {
    "text": lambda path: lambda: write_text(path, "x"),
    "line": lambda path: lambda: append_json_line(path, {}),
    "directory": lambda path: lambda: write_staged(path),
    "metrics": lambda path: partial(MetricsLog(path, 0).write, step=1),
    "captions": lambda path: partial(
        Journal(path, ("path",), ("caption",)).append, Item({"path": "a"}, None), Outcome({"caption": "a"})
    ),
    "run_dir": lambda path: lambda: locked(path, print).__enter__(),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_message_that_names_the_file(tmp_path, full_disk, capsys, writer):
    path = tmp_path / "out.jsonl"
    work = WRITERS[writer](path)
    with pytest.raises(SystemExit, match="2"), reporting(), full_disk():
        work()
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {path}") and shown.endswith("cannot be written: File too large\n"), shown
    assert shown.count("\n") == 1
    assert not list(tmp_path.glob(".*.tmp")) and not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("writer", ["text", "line", "directory", "run_dir"])
def test_a_folder_that_cannot_be_made_is_one_message(tmp_path, capsys, writer):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"), reporting():
        WRITERS[writer](tmp_path / "file" / "out")()
    assert "out cannot be written: " in capsys.readouterr().err


def test_a_read_only_disk_is_one_message(tmp_path, capsys):
    """What a library raises that writes by itself."""
    with pytest.raises(SystemExit, match="2"), reporting():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))
    assert capsys.readouterr().err == f"error: Read-only file system for {tmp_path}\n"
    with pytest.raises(PermissionError), reporting():  # not about a file
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), atomic_file(path) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_directory_that_is_not_finished_is_deleted(error, tmp_path):
    final = tmp_path / "model"
    final.mkdir()
    with pytest.raises(error), staged_directory(final) as aside:
        aside.mkdir()
        raise error
    assert list(tmp_path.iterdir()) == [final]


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    for final in (tmp_path / "file" / "model", tmp_path / ("a" * 250)):
        with pytest.raises(UserError, match="cannot be written: "), staged_directory(final) as aside:
            aside.mkdir(parents=True)
    with pytest.raises(UserError, match=r"model cannot be written: .*I/O error"), staged_directory(tmp_path / "model"):
        # What a full disk gives (safetensors 0.8; seen with a file size limit).
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_behind_a_link_and_the_one_we_are_in(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for final in (tmp_path / "link", Path()):
        with staged_directory(final) as aside:
            aside.mkdir(parents=True)
            (aside / "config.json").touch()
    assert (tmp_path / "disk" / "model" / "config.json").exists() and (tmp_path / "here" / "config.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"link", "disk", "here"} and (tmp_path / "link").is_symlink()


def test_json_objects(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert read_json_object(path) == {"a": 1}
    path.write_text("[]")
    with pytest.raises(UserError, match=r"config\.json holds a JSON list, expected an object"):
        read_json_object(path)


def test_json_lines_with_any_character_and_an_incomplete_last_one(tmp_path):
    path = tmp_path / "folder" / "lines.jsonl"
    values = ["a\u2028b", {"name": "\udcff"}, "日本"]
    for value in values:
        append_json_line(path, value)
    assert read_json_lines(path) == values
    complete = path.read_bytes()
    path.write_bytes(complete + '"日'.encode()[:-1])
    lines, rest = split_complete_lines(path)
    assert b"".join(line + b"\n" for line in lines) == complete and rest == b'"\xe6\x97'


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.0123, "0.012 s"),
        (59.94, "59.9 s"),
        (90, "1.5 min"),
        (7150, "1 h 59 min"),
        (4e6, "1,111 h 7 min"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_checkpoint_names_are_sorted_by_step_and_others_ignored(tmp_path):
    steps = [9, 123, 99_999_999]
    for name in [*map(step_name, steps), ".step-00000130.partial", "step-12", "latest"]:
        (tmp_path / name).mkdir()
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == steps
    assert step_name(12) == "step-00000012" and step_of(Path("runs/step-00000012")) == 12
