"""The question task: each question of a file is asked by itself and scored by exact match, per kind of question.

Two baselines show how much can be guessed: always giving the commonest answer of a kind, and the blind score, the same
questions about swapped or blank images.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from mmchat.data.image_refs import ImageRef
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.evaluation.metrics import commonest_answer_scores, exact_match, mean_by_kind
from mmchat.evaluation.one_image_records import one_image_records
from mmchat.progress import progress_bar

if TYPE_CHECKING:
    from mmchat.inference.generator import Generator  # imports torch

Blind = Literal["swapped", "blank"]
BLINDS: dict[Blind, str] = {"swapped": "another image", "blank": "a blank image"}
"""The images of the blind score: name -> description."""
ImageOpener = Callable[[], Image.Image]


@dataclass(frozen=True)
class Question:
    """One question about one image. Scores are grouped by `kind`."""

    image: ImageRef
    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class KindScore:
    """Shares from 0 to 1.

    questions: their number.
    score: exact match. blind: the same about other images. commonest: that of always the commonest answer.
    """

    kind: str
    questions: int
    score: float
    blind: float
    commonest: float


@dataclass(frozen=True)
class EvalResult:
    """kinds: sorted by name. overall: over all questions. predictions, blind: one answer per question, in order."""

    kinds: list[KindScore]
    overall: KindScore
    predictions: list[str]
    blind: list[str]

    def flat(self) -> dict[str, float]:
        """Metric name -> number, as in scores.json."""
        named = {"overall": self.overall} | {f"kind/{score.kind}": score for score in self.kinds}
        flat = {name: score.score for name, score in named.items()}
        flat |= {f"{name}/blind": score.blind for name, score in named.items()}
        flat |= {f"{name}/commonest": score.commonest for name, score in named.items()}
        return flat | {f"{name}/questions": score.questions for name, score in named.items()}


def read_questions(path: Path, image_root: Path) -> list[Question]:
    """The questions of a data file: every user turn with the answer that follows.

    Args:
        path: LLaVA .json or .jsonl. A record may have `kinds`, one per question; without it the kind is "question".
        image_root: folder of the images.

    Raises:
        UserError: a record is unusable, or does not have exactly one image and an answer and a kind per question.
    """
    questions: list[Question] = []
    for record in one_image_records(open_source(path, image_root), "the question task"):
        texts, answers = [turn.text for turn in record.turns if turn.role == "user"], record.answers
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
    """For each question another image: the list of distinct images, rotated by half its length.

    Raises:
        UserError: fewer than two images.
    """
    images = list(dict.fromkeys(question.image for question in questions))
    if len(images) < 2:
        raise UserError("the blind score swaps images, so it needs at least two")
    rotated = images[len(images) // 2 :] + images[: len(images) // 2]
    other = dict(zip(images, rotated, strict=True))
    return [other[question.image] for question in questions]


def blank_image(image: ImageRef) -> Image.Image:
    """A white image of the same size."""
    return Image.new("RGB", image.open().size, "white")


def answer_all(
    generator: "Generator",
    questions: Sequence[Question],
    images: Sequence[ImageOpener],
    title: str,
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers, one per question.

    Args:
        images: opens the image of each question.
        title: of the progress bar.
    """
    asked = (
        generator.conversation(question.text, image, ()) for question, image in zip(questions, images, strict=True)
    )
    answers = []
    with progress_bar(title, len(questions)) as bar:
        for answer in generator.submit_all(asked, max_new_tokens=max_new_tokens):
            answers.append(answer.result().text)
            bar.advance(1)
    return answers


def evaluate(
    generator: "Generator",
    questions: Sequence[Question],
    max_new_tokens: int = 64,
    blind: Blind = "swapped",
) -> EvalResult:
    """Ask every question twice: about its own image, and for the blind score about another."""
    other_images: list[ImageOpener]
    if blind == "blank":
        other_images = [partial(blank_image, question.image) for question in questions]
    else:
        other_images = [image.open for image in swap_images(questions)]
    own_images = [question.image.open for question in questions]
    predictions = answer_all(generator, questions, own_images, "answering", max_new_tokens)
    blind_predictions = answer_all(generator, questions, other_images, "answering blind", max_new_tokens)
    return score(questions, predictions, blind_predictions)


def score(questions: Sequence[Question], predictions: Sequence[str], blind: Sequence[str]) -> EvalResult:
    """Exact match of answers and of blind answers, per kind and overall."""
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
    return EvalResult(rows, overall, list(predictions), list(blind))
