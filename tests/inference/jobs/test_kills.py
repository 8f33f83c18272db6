"""Exactly one line per image, whichever process is killed and when."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from mmchat.inference import Generator
from tests.inference.jobs.fakes import lines
from tests.launching import ROOT


@pytest.fixture
def folder(tmp_path, make_image, request):
    """(good, bad) images, the bad ones between the others."""
    good, bad = request.param
    (folder := tmp_path / "images").mkdir()
    sound = [folder / f"{number:05}.png" for number in range(good + bad)]
    broken = random.Random(0).sample(sound, bad)
    for number, path in enumerate(sound):
        make_image(number, 10 + number % 50).save(path)
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    return folder


class Job:
    """A job in a process of its own, started again after it is killed."""

    def __init__(self, command, out):
        self.command, self.out = [sys.executable, "-m", *map(str, command)], out
        self.start()

    def start(self):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # A suite that runs in the background passes on that SIGINT is ignored; a job in a terminal gets it.
        heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(self.command, cwd=ROOT, start_new_session=True, preexec_fn=heed, **pipes)

    def wait_for(self, count):
        """Wait until the journal has so many lines, or the job has ended."""
        while self.process.poll() is None and self.count() < count:
            time.sleep(0.002)

    def count(self):
        return self.out.read_bytes().count(b"\n") if self.out.exists() else 0

    def workers(self):
        found = []
        with contextlib.suppress(psutil.Error):  # a process that has ended
            for child in psutil.Process(self.process.pid).children():
                found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
        return found

    def kill_worker(self):
        for worker in self.workers()[:1]:
            worker.send_signal(signal.SIGKILL)

    def kill_parent(self):
        """Kill the parent, see that its workers end too, and start the job again."""
        workers = self.workers()
        self.process.kill()
        self.process.communicate()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive
        self.start()

    def finish(self):
        out, err = (text.decode() for text in self.process.communicate())
        assert self.process.returncode == 0, err
        return out, err


def check(out, folder, bad):
    written = lines(out)
    assert sorted(line["path"] for line in written) == sorted(map(str, folder.iterdir()))
    assert sum("error" in line for line in written) == bad
    assert all(("error" in line) != ("caption" in line) for line in written)
    return written


@pytest.mark.parametrize("folder", [(27, 3)], indirect=True)
def test_a_job_that_is_killed_twice(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    job = Job(["tests.inference.jobs.fakes", folder, out, 2, 0.1], out)
    job.wait_for(5)
    job.kill_worker()
    job.wait_for(15)
    job.kill_parent()
    job.finish()
    check(out, folder, bad=3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("folder", [(1960, 40)], indirect=True)
def test_two_thousand_images_and_five_kills(folder, tmp_path, assistant_dir, ranks):
    out, chance = tmp_path / "out.jsonl", random.Random(ranks)
    arguments = ["--out", out, "--ranks", ranks, "--max-new-tokens", 4, "--batch-size", 8]
    job = Job(["mmchat.cli.main", "caption", assistant_dir, folder, *arguments], out)
    for number, moment in enumerate(sorted(chance.sample(range(1, 1900), 5))):
        job.wait_for(moment)
        assert job.process.poll() is None
        if ranks > 1 and number % 2 == 0:
            job.kill_worker()
        else:
            job.kill_parent()
    printed, _ = job.finish()
    assert "40 could not be read" in printed
    captions = {line["path"]: line.get("caption") for line in check(out, folder, bad=40)}
    some = [path for path in sorted(captions) if captions[path] is not None][::100]
    with Generator(assistant_dir, device="cpu") as generator:
        assert generator.caption(some, max_new_tokens=4) == [captions[path] for path in some]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("folder", [(1000, 0)], indirect=True)
def test_ctrl_c(folder, tmp_path, assistant_dir, ranks):
    out = tmp_path / "out.jsonl"
    arguments = ["--out", out, "--ranks", ranks, "--max-new-tokens", 16, "--batch-size", 4]
    job = Job(["mmchat.cli.main", "caption", assistant_dir, folder, *arguments], out)
    job.wait_for(50)
    workers = job.workers()
    os.killpg(job.process.pid, signal.SIGINT)  # as a terminal sends it, to all
    err = job.process.communicate(timeout=60)[1].decode()
    assert job.process.returncode == 130
    assert err.endswith(f"stopped; what was done is in {out}, and the same command resumes\ninterrupted\n")
    assert "Traceback" not in err
    assert not psutil.wait_procs(workers, timeout=20)[1]
    job.start()
    job.finish()
    check(out, folder, bad=0)
