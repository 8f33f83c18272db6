"""A job on a local Ray cluster."""

import random
import signal

import psutil
import pytest

from mmchat.errors import UserError
from mmchat.inference.jobs.ray_job import ray_engine
from tests.inference.jobs.test_kills import Job, check, folder  # noqa: F401 - a fixture


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("mmchat.extras.installed", lambda module: module != "ray")
    with pytest.raises(UserError, match=r"^ray is not installed; run pip install 'mmchat\[ray\]'$"):
        ray_engine(None, None, 1, 1, tmp_path / "out.jsonl")


def actors(parent):
    """The processes of the job's actors."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("MapWorker" in word for word in process.info["cmdline"] or ()):
            found += [process] if parent in [one.pid for one in process.parents()] else []
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("folder", [(1960, 40)], indirect=True)
def test_two_thousand_images_with_a_worker_killed(folder, tmp_path, assistant_dir):  # noqa: F811
    pytest.importorskip("ray")
    out = tmp_path / "out.jsonl"
    arguments = ["--out", out, "--engine", "ray", "--ranks", 2, "--max-new-tokens", 4, "--batch-size", 8]
    job = Job(["mmchat.cli.main", "caption", assistant_dir, folder, *arguments], out)
    job.wait_for(random.Random(0).randrange(200, 1200))
    (victim, *_) = actors(job.process.pid)
    victim.send_signal(signal.SIGKILL)
    printed, _ = job.finish()
    assert "1960 captioned, 40 could not be read, 0 were done before" in printed
    check(out, folder, bad=40)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_model_that_cannot_be_opened_is_one_message(tmp_path, make_image):
    pytest.importorskip("ray")
    make_image().save(tmp_path / "a.png")
    out = tmp_path / "out.jsonl"
    job = Job(["mmchat.cli.main", "caption", tmp_path, tmp_path / "a.png", "--out", out, "--engine", "ray"], out)
    _, err = job.process.communicate()
    assert job.process.returncode == 2
    assert err.decode().splitlines()[-1] == f"error: {tmp_path}/config.json does not exist"
