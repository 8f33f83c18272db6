"""The answers of a model to a task: one line per question and image, exactly once, whatever is killed.

A line about a question's own image also holds what scoring needs of the question, so that a file of answers can be
scored again by itself.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from mmchat.errors import UserError
from mmchat.evaluation.questions import blank_image
from mmchat.evaluation.tasks.definition import TaskConfig
from mmchat.evaluation.tasks.prompts import TaskPrompt
from mmchat.evaluation.tasks.reading import TaskData
from mmchat.evaluation.tasks.samples import Sample
from mmchat.inference.jobs.items import Item, Line, Outcome, failure, refuse
from mmchat.inference.jobs.job import Job
from mmchat.inference.repetition import REPEATS

if TYPE_CHECKING:
    from mmchat.inference.generator import Generator

ANSWERING = Job("answering", ("id", "image"), ("answer",))
OWN = "own"
"""Value of `image` in a line about a question's own image; otherwise it is how the blind image was made."""
TaskBlind = Literal["swapped", "blank", "none"]
Choosing = Literal["text", "likelihood"]
ImageOpener = Callable[[], Image.Image]


@dataclass(frozen=True)
class Question(Item):
    """A sample to be asked about its own images or others."""

    images: tuple[ImageOpener, ...] = ()
    letters: str = ""
    """Letters of its options."""


@dataclass(frozen=True)
class AnswerTask:
    """Asks a model a question of a task: for a text, or for the most probable letter."""

    max_new_tokens: int
    choosing: Choosing = "text"

    def __call__(self, generator: "Generator", item: Item) -> Outcome:
        assert isinstance(item, Question)
        content: list[dict[str, Any]] = [{"type": "image"} for _ in item.images]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": item.prompt}]}]
        if self.choosing == "likelihood":
            return _most_probable(generator, messages, item)
        reply = generator.submit(messages, item.images, max_new_tokens=self.max_new_tokens, repeats=REPEATS).result()
        return Outcome({"answer": reply.text, "stopped": reply.reason}, len(reply.ids))


def _most_probable(generator: "Generator", messages: list[dict[str, Any]], item: Question) -> Outcome:
    from mmchat.inference.likelihood import answer_likelihoods

    if not item.letters:
        return failure(f"question {item.key['id']} has no options, so none can be chosen by likelihood")
    found = answer_likelihoods(generator, messages, item.images, list(item.letters))
    logprobs = {letter: round(one.logprob, 5) for letter, one in zip(item.letters, found, strict=True)}
    return Outcome({"answer": max(logprobs, key=lambda letter: logprobs[letter]), "logprobs": logprobs}, len(found))


@dataclass(frozen=True)
class Asking:
    """The questions of a task as items of a job: all about their own images, then all about others.

    Args:
        task: The task.
        data: Its data.
        samples: Those of its samples that are asked.
        blind: How the images of the blind score are made; "none": there is none.

    Raises:
        UserError: Images cannot be swapped, because all samples have the same.
    """

    task: TaskConfig
    data: TaskData
    samples: Sequence[Sample]
    blind: TaskBlind
    _others: dict[str, Sample] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.blind == "swapped":
            self._others.update(swapped(self.data.samples))

    def __len__(self) -> int:
        return len(self.samples) * (1 if self.blind == "none" else 2)

    def __iter__(self) -> Iterator[Question]:
        prompt = TaskPrompt(self.task.prompt)
        for sample in self.samples:
            yield self._question(sample, prompt, OWN, self._openers(sample), as_line(sample))
        if self.blind == "none":
            return
        for sample in self.samples:
            openers = self._openers(self._others.get(sample.image, sample), self.blind == "blank")
            yield self._question(sample, prompt, self.blind, openers, {})

    def _question(
        self, sample: Sample, prompt: TaskPrompt, image: str, openers: tuple[ImageOpener, ...], kept: Line
    ) -> Question:
        text = prompt.fill(sample.question, sample.options, sample.fields)
        letters = ascii_uppercase[: len(sample.options)]
        return Question(
            {"id": sample.id, "image": image}, openers[0], prompt=text, kept=kept, images=openers, letters=letters
        )

    def _openers(self, sample: Sample, blank: bool = False) -> tuple[ImageOpener, ...]:
        """Functions that open the images of a sample. Where there are none, one that says so."""
        try:
            images = self.data.images(sample)
        except UserError as error:
            return (partial(refuse, f"{sample.id}: {error}"),)
        return tuple(partial(blank_image, image) if blank else image.open for image in images)


def swapped(samples: Sequence[Sample]) -> dict[str, Sample]:
    """For the images of each sample a sample with others: the list of distinct images, rotated by half its length.

    Raises:
        UserError: All have the same.
    """
    by_image: dict[str, Sample] = {}
    for sample in samples:
        by_image.setdefault(sample.image, sample)
    if len(by_image) < 2:
        raise UserError("the blind score swaps images, so it needs at least two; use --blind blank or --blind none")
    firsts = list(by_image.values())
    half = len(firsts) // 2
    return dict(zip(by_image, [*firsts[half:], *firsts[:half]], strict=True))


def as_line(sample: Sample) -> Line:
    """What a line says about its question."""
    return {"sample": {name: value for name, value in asdict(sample).items() if name != "id" and value}}


def as_sample(line: Line) -> Sample:
    """The question of a line that `as_line` made.

    Raises:
        UserError: There is none.
    """
    try:
        texts = line["sample"]
        answers, options = (tuple(map(str, texts.get(name, ()))) for name in ("answers", "options"))
        names = {name: str(texts.get(name, "")) for name in ("question", "image", "group")}
        numbers = {name: int(texts.get(name, 0)) for name in ("row", "turns")}
        fields = {str(name): str(value) for name, value in texts.get("fields", {}).items()}
        return Sample(str(line["id"]), answers=answers, options=options, fields=fields, **names, **numbers)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"the line of {line.get('id')!r} has no question of a task; name the data with --data"
        ) from None


def content_of(samples: Sequence[Sample]) -> str:
    """Hash of the questions. `made_by.json` records it, so that answers to other data are not resumed."""
    digest = hashlib.blake2b(digest_size=12)
    for sample in samples:
        digest.update(json.dumps([sample.id, sample.question, sample.options, sample.image]).encode())
    return digest.hexdigest()
