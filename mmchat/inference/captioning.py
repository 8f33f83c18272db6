"""Caption many images: one line `{"path", "caption"}` or `{"path", "error"}` per image."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchat.images import load_image
from mmchat.inference.jobs.items import Item, Outcome
from mmchat.inference.jobs.job import Job, JobSummary, run_job, workers
from mmchat.inference.jobs.prompts import PromptTemplate, with_prompts
from mmchat.inference.jobs.workers import ThreadWorker
from mmchat.inference.repetition import REPEATS

if TYPE_CHECKING:
    from mmchat.inference.generator import Generator

CAPTIONING = Job("captioning", ("path",), ("caption",))


@dataclass(frozen=True)
class CaptionTask:
    """Asks a model for the caption of an item."""

    max_new_tokens: int

    def __call__(self, generator: "Generator", item: Item) -> Outcome:
        content: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": item.prompt}]
        messages = [{"role": "user", "content": content}]
        reply = generator.submit(messages, [item.open], max_new_tokens=self.max_new_tokens, repeats=REPEATS).result()
        return Outcome({"caption": reply.text}, len(reply.ids))


def caption_files(
    generator: "Generator", files: Iterable[Path], out: Path, prompt: str, batch_size: int, max_new_tokens: int
) -> JobSummary:
    """Append the captions that are missing in `out`.

    Args:
        generator: The model.
        files: The images.
        out: The JSON lines file.
        prompt: The question about each image; `{path}` stands for its path.
        batch_size: Images in the model at a time.
        max_new_tokens: Longest caption, in tokens.

    Returns:
        How many images were done, failed and skipped; see `run_job`.
    """
    items = (Item({"path": str(file)}, partial(load_image, file)) for file in files)
    task = CaptionTask(max_new_tokens)
    engine = workers(lambda events: [ThreadWorker(generator, task, batch_size, events)])
    return run_job(CAPTIONING, with_prompts(items, PromptTemplate(prompt)), out, engine)
