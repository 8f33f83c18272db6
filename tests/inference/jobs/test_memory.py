"""Memory of a job does not hold the images: measured in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from tests.launching import ROOT

PROGRAM = """
import json, sys
from functools import partial
from pathlib import Path
from mmchat.inference.captioning import CAPTIONING
from mmchat.inference.jobs.dispatch import dispatch
from mmchat.inference.jobs.items import Outcome
from mmchat.inference.jobs.job import run_job
from mmchat.inference.jobs.prompts import PromptTemplate, with_prompts
from mmchat.inference.jobs.sources import Options, Sources
from mmchat.inference.jobs.workers import ThreadWorker

def task(generator, item):
    return Outcome({"caption": "a"})

def megabytes():
    # Not ru_maxrss, which includes what the parent had before this program replaced it.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

before = megabytes()
sources = Sources([sys.argv[1]], Options())
items = with_prompts(sources, PromptTemplate("What?"))
workers = lambda events: [ThreadWorker(None, task, 8, events)]
summary = run_job(CAPTIONING, items, Path(sys.argv[2]), partial(dispatch, make_workers=workers), sources.count)
print(json.dumps([summary.done, summary.skipped, before, megabytes()]))
"""
LINKS = 50_000
"""Of one file; ext4 allows 65,000."""


def measure(folder, out):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder, out], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_thousand_images(tmp_path, make_image):
    (folder := tmp_path / "images").mkdir()
    for number in range(200_000):
        if number % LINKS == 0:
            make_image(number).save(first := tmp_path / f"{number}.png")
        os.link(first, folder / f"{number:06}-with-a-name-of-usual-length.png")
    done, skipped, before, after = measure(folder, tmp_path / "out.jsonl")
    assert (done, skipped) == (200_000, 0)
    print(f"first run: {before:.0f} MB before, {after:.0f} MB at most")
    assert after - before < 60
    done, skipped, before, after = measure(folder, tmp_path / "out.jsonl")
    assert (done, skipped) == (0, 200_000)
    print(f"second run: {before:.0f} MB before, {after:.0f} MB at most")
    assert after - before < 60
