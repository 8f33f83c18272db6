"""The question task: every question of a file asked by itself, scored by exact match per kind.

Beside the score stand two that keep it honest: always giving a kind's commonest answer, and the blind
score, the same questions with the images swapped among them, or about blank ones.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image

from mmchat.data.image_refs import ImageRef
from mmchat.data.records import Rejected
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.evaluation.metrics import commonest_answer_scores, exact_match, mean_by_kind
from mmchat.inference.generator import Generator
from mmchat.progress import progress_bar

Blind = Literal["swapped", "blank"]
BLINDS: dict[Blind, str] = {"swapped": "another image", "blank": "a blank image"}
"""What is looked at for the blind score."""
Look = Callable[[], Image.Image]


@dataclass(frozen=True)
class Question:
    """One question about one image; `kind` groups the scores."""

    image: ImageRef
    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class KindScore:
    """Shares of 1."""

    kind: str
    questions: int
    score: float
    blind: float
    commonest: float


@dataclass(frozen=True)
class Result:
    kinds: list[KindScore]
    overall: KindScore
    predictions: list[str]
    blind: list[str]

    def flat(self) -> dict[str, float]:
        """Metric name -> number, as `scores.json` holds them."""
        named = {"overall": self.overall} | {f"kind/{score.kind}": score for score in self.kinds}
        flat = {name: score.score for name, score in named.items()}
        flat |= {f"{name}/blind": score.blind for name, score in named.items()}
        flat |= {f"{name}/commonest": score.commonest for name, score in named.items()}
        return flat | {f"{name}/questions": score.questions for name, score in named.items()}


def read_questions(path: Path, image_root: Path) -> list[Question]:
    """Every human turn of a LLaVA file with its answer; `kinds` (one per question) is optional in a record.

    Raises:
        UserError: a record is unusable (an evaluation leaves nothing out), or holds other than one image.
    """
    questions: list[Question] = []
    for record in open_source(path, image_root):
        if isinstance(record, Rejected):
            raise UserError(f"{record.where}: {record.reason}")
        if len(record.images) != 1:
            raise UserError(f"{record.where}: {len(record.images)} images; the question task needs exactly one")
        texts = ["".join(part or "" for part in turn.parts) for turn in record.turns if turn.role == "user"]
        answers = ["".join(turn.parts) for turn in record.turns if turn.role == "assistant"]
        kinds = record.extra.get("kinds", ["question"] * len(texts))
        if not len(texts) == len(answers) == len(kinds):
            raise UserError(
                f"{record.where}: {len(texts)} questions, {len(answers)} answers, {len(kinds)} kinds; expected as many"
            )
        questions += [
            Question(record.images[0], text.strip(), answer, kind)
            for text, answer, kind in zip(texts, answers, kinds, strict=True)
        ]
    return questions


def swap_images(questions: Sequence[Question]) -> list[ImageRef]:
    """For each question the image of another: the list of distinct images turned by half its length.

    Raises:
        UserError: fewer than two images.
    """
    images = list(dict.fromkeys(question.image for question in questions))
    if len(images) < 2:
        raise UserError("the blind score swaps images, so it needs at least two")
    turned = images[len(images) // 2 :] + images[: len(images) // 2]
    other = dict(zip(images, turned, strict=True))
    return [other[question.image] for question in questions]


def blank(image: ImageRef) -> Image.Image:
    """White paper of the same size."""
    return Image.new("RGB", image.open().size, "white")


def answer_all(
    generator: Generator,
    questions: Sequence[Question],
    looks: Sequence[Look],
    title: str,
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers, batches sorted by question length so that little is padded."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].kind, len(questions[i].text)))
    answers = [""] * len(questions)
    with progress_bar(title, len(questions)) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            images = [looks[i]() for i in batch]
            conversations = [
                generator.conversation(questions[i].text, image, ())[0] for i, image in zip(batch, images, strict=True)
            ]
            texts = generator.generate(conversations, [[p] for p in images], max_new_tokens=max_new_tokens)
            for i, text in zip(batch, texts, strict=True):
                answers[i] = text
            bar.advance(len(batch))
    return answers


def evaluate(
    generator: Generator,
    questions: Sequence[Question],
    batch_size: int = 32,
    max_new_tokens: int = 64,
    blind: Blind = "swapped",
) -> Result:
    """Ask everything twice: about the right images, and about others."""
    options = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    own: list[Look] = [question.image.open for question in questions]
    other: list[Look]
    if blind == "blank":
        other = [partial(blank, question.image) for question in questions]
    else:
        other = [image.open for image in swap_images(questions)]
    predictions = answer_all(generator, questions, own, "answering", **options)
    return score(questions, predictions, answer_all(generator, questions, other, "answering blind", **options))


def score(questions: Sequence[Question], predictions: Sequence[str], blind: Sequence[str]) -> Result:
    kinds = [question.kind for question in questions]
    references = [question.answer for question in questions]
    hits = [exact_match(p, r) for p, r in zip(predictions, references, strict=True)]
    blind_hits = [exact_match(p, r) for p, r in zip(blind, references, strict=True)]
    per_kind, per_kind_blind = mean_by_kind(kinds, hits), mean_by_kind(kinds, blind_hits)
    commonest = commonest_answer_scores(kinds, [question.text for question in questions], references)
    counts = Counter(kinds)
    rows = [
        KindScore(kind, counts[kind], per_kind[kind], per_kind_blind[kind], commonest[kind]) for kind in sorted(counts)
    ]
    total = len(questions)
    overall = KindScore(
        "overall",
        total,
        sum(hits) / total,
        sum(blind_hits) / total,
        sum(row.commonest * row.questions for row in rows) / total,
    )
    return Result(rows, overall, list(predictions), list(blind))
