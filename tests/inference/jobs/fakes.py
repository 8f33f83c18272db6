"""Stand-ins for a Generator, without torch, so that processes with one start quickly."""

import json
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmchat.errors import UserError
from mmchat.inference.captioning import CAPTIONING, CaptionTask
from mmchat.inference.jobs.dispatch import dispatch
from mmchat.inference.jobs.job import run_job
from mmchat.inference.jobs.prompts import PromptTemplate, with_prompts
from mmchat.inference.jobs.ranks import rank_workers
from mmchat.inference.jobs.sources import Options, Sources


@dataclass(frozen=True)
class FakeReply:
    text: str
    ids: tuple
    reason: str = "end"


class FakeAnswer:
    def __init__(self, work):
        self._work = work

    def result(self):
        return self._work()


class FakeGenerator:
    """Answers with the prompt and the width of the image. `fail_after`: images before a KeyboardInterrupt."""

    def __init__(self, seconds=0.0, fail_after=None, text="{prompt} {width}"):
        self.seconds, self.fail_after, self.text = seconds, fail_after, text
        self.asked = []

    def submit(self, messages, images, max_new_tokens, repeats=None):
        prompt = messages[0]["content"][1]["text"]
        return FakeAnswer(lambda: self._reply(prompt, *images))

    def _reply(self, prompt, open_image):
        image = open_image()
        time.sleep(self.seconds)
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked.append(image.width)
        return FakeReply(self.text.format(prompt=prompt, width=image.width), (1, 2, 3))


def open_fake(seconds, rank):
    return FakeGenerator(seconds)


def open_deadly(folder, rank):
    """Ends its process at images of 13 pixels' width, and notes its process in a folder."""
    Path(folder, str(os.getpid())).touch()

    class Deadly(FakeGenerator):
        def _reply(self, prompt, open_image):
            if open_image().width == 13:
                os._exit(7)
            return super()._reply(prompt, open_image)

    return Deadly()


def open_refused(rank):
    raise UserError("there is no such model")


def lines(out):
    return [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]


def caption_with_fakes(folder, out, ranks, seconds):
    """A job as `mmchat caption --ranks` runs it, with workers that take some seconds per image."""
    workers = partial(rank_workers, partial(open_fake, seconds), CaptionTask(9), 2, ranks)
    items = with_prompts(Sources([folder], Options()), PromptTemplate("Width"))
    return run_job(CAPTIONING, items, Path(out), partial(dispatch, make_workers=workers))


if __name__ == "__main__":
    caption_with_fakes(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
