"""How a task's answers become figures, by name.

Every figure is a function of sums over questions: of right answers, of true positives, of n-grams. So any part of a
task, and every sample of a bootstrap, is scored by adding rows up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mmchat.errors import UserError
from mmchat.evaluation.metrics import exact_match
from mmchat.evaluation.tasks.metrics.captions import bleu_counts, bleu_of_counts, cider
from mmchat.evaluation.tasks.metrics.short import (
    document_anls,
    gqa_exact,
    ocrbench_contains,
    ocrbench_formula,
    relaxed_correctness,
    same_text,
)
from mmchat.evaluation.tasks.metrics.vqa import text_vqa_accuracy, vqa_accuracy
from mmchat.evaluation.tasks.samples import Sample
from mmchat.evaluation.text_scores import bleu, edit_distance, meteor, word_f1, word_precision, word_recall

Figures = dict[str, float]
"""Name -> value. The first is the score of the task."""


class Scorer(Protocol):
    """Sums of questions, and figures of sums."""

    description: str
    percent: bool
    """Whether figures are shares, which are shown in percent."""
    lower_is_better: bool
    closed: bool
    """Whether always giving one answer makes sense as a guess."""
    of_part: str
    """The figure that is shown for a part of a task."""

    def sums(self, samples: Sequence[Sample], answers: Sequence[str]) -> np.ndarray:
        """float[N, K] for all questions of a task and what was read from their answers."""

    def figures(self, total: np.ndarray) -> Figures:
        """From float[K], the sum over some questions."""

    def right(self, sums: np.ndarray) -> np.ndarray:
        """float[N], how right each answer is, from 0 to 1: for lists of failures."""


@dataclass(frozen=True)
class Mean:
    """The mean of a score of each answer."""

    name: str
    score: Callable[[str, Sample], float]
    description: str
    percent: bool = True
    lower_is_better: bool = False
    closed: bool = True

    @property
    def of_part(self) -> str:
        return self.name

    def sums(self, samples: Sequence[Sample], answers: Sequence[str]) -> np.ndarray:
        values = [self.score(answer, sample) for answer, sample in zip(answers, samples, strict=True)]
        return np.stack([np.array(values, float), np.ones(len(values))], axis=1)

    def figures(self, total: np.ndarray) -> Figures:
        return {self.name: _ratio(total[0], total[1])}

    def right(self, sums: np.ndarray) -> np.ndarray:
        return sums[:, 0]


class YesNo:
    """POPE: F1 of "yes", accuracy, precision, recall, and the share of answers that are "yes"."""

    description = "F1 of yes (POPE)"
    percent, lower_is_better, closed, of_part = True, False, True, "f1"

    def sums(self, samples: Sequence[Sample], answers: Sequence[str]) -> np.ndarray:
        """True positives, false positives, false negatives, true negatives."""
        right = np.array([sample.answers[0].strip().lower() == "yes" for sample in samples])
        said = np.array([answer == "yes" for answer in answers])
        return np.stack([said & right, said & ~right, ~said & right, ~said & ~right], axis=1).astype(float)

    def figures(self, total: np.ndarray) -> Figures:
        hit, false, missed, rejected = total
        precision, recall = _ratio(hit, hit + false), _ratio(hit, hit + missed)
        return {
            "f1": _ratio(2 * precision * recall, precision + recall),
            "accuracy": _ratio(hit + rejected, total.sum()),
            "precision": precision,
            "recall": recall,
            "yes_share": _ratio(hit + false, total.sum()),
        }

    def right(self, sums: np.ndarray) -> np.ndarray:
        return sums[:, 0] + sums[:, 3]


class Circular:
    """MMBench's CircularEval: questions answered right in all orders of their options; and in the first order alone."""

    description = "right in all orders of the options (arXiv:2307.06281)"
    percent, lower_is_better, closed, of_part = True, False, True, "circular"

    def sums(self, samples: Sequence[Sample], answers: Sequence[str]) -> np.ndarray:
        """Right in all orders, right in the first, questions: in the row of the first order. Right: in each row."""
        right = np.array([_is_choice(answer, sample) for answer, sample in zip(answers, samples, strict=True)])
        members = _positions([sample.group for sample in samples])
        sums = np.zeros((len(samples), 4))
        sums[:, 3] = right
        for places in members.values():
            first = places[0]
            sums[first, :3] = right[places].all(), right[first], 1
        return sums

    def figures(self, total: np.ndarray) -> Figures:
        return {"circular": _ratio(total[0], total[2]), "accuracy": _ratio(total[1], total[2])}

    def right(self, sums: np.ndarray) -> np.ndarray:
        return sums[:, 3]


MME_PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork"),
    "OCR",
)
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


class Mme:
    """MME: for each category its accuracy and that of images with both answers right, in points of 100 each."""

    description = "accuracy and accuracy+ in points, summed over categories (arXiv:2306.13394)"
    percent, lower_is_better, closed, of_part = False, False, True, "total"
    categories = (*MME_PERCEPTION, *MME_COGNITION)

    def sums(self, samples: Sequence[Sample], answers: Sequence[str]) -> np.ndarray:
        """For each category: right answers, answers; in the row of an image's first question: both right, images."""
        right = np.array(
            [answer == sample.answers[0].strip().lower() for answer, sample in zip(answers, samples, strict=True)]
        )
        sums = np.zeros((len(samples), len(self.categories), 4))
        places = [self._place(sample) for sample in samples]
        for row, (place, hit) in enumerate(zip(places, right, strict=True)):
            sums[row, place, :2] = hit, 1
        for group, rows in _positions([sample.group for sample in samples]).items():
            if len(rows) != 2:
                raise UserError(f"MME asks two questions about an image; {group} has {len(rows)}")
            sums[rows[0], places[rows[0]], 2:] = right[rows].all(), 1
        return sums.reshape(len(samples), -1)

    def figures(self, total: np.ndarray) -> Figures:
        points = {
            category: 100 * (_ratio(right, answers) + _ratio(both, images))
            for category, (right, answers, both, images) in zip(self.categories, total.reshape(-1, 4), strict=True)
            if answers
        }
        groups = {"perception": MME_PERCEPTION, "cognition": MME_COGNITION}
        sums = {name: float(sum(points.get(one, 0.0) for one in of)) for name, of in groups.items()}
        return {**sums, "total": sum(sums.values())}

    def right(self, sums: np.ndarray) -> np.ndarray:
        return sums.reshape(len(sums), -1, 4)[:, :, 0].sum(axis=1)

    def _place(self, sample: Sample) -> int:
        category = sample.fields.get("category", "")
        if category not in self.categories:
            raise UserError(f"{sample.id}: category {category!r} is none of MME's: {', '.join(self.categories)}")
        return self.categories.index(category)


class Captions:
    """COCO's caption evaluation: CIDEr-D, as it is published 100 for 1.0, and BLEU."""

    description = "CIDEr-D and BLEU (arXiv:1504.00325)"
    percent, lower_is_better, closed, of_part = True, False, False, "cider"

    def sums(self, samples: Sequence[Sample], answers: Sequence[str]) -> np.ndarray:
        references = [sample.answers for sample in samples]
        counts = [bleu_counts(answer, right) for answer, right in zip(answers, references, strict=True)]
        return np.column_stack([cider(answers, references), np.ones(len(samples)), np.array(counts).reshape(-1, 10)])

    def figures(self, total: np.ndarray) -> Figures:
        one, two, three, four = bleu_of_counts(total[2:])
        return {"cider": _ratio(total[0], total[1]), "bleu_4": four, "bleu_3": three, "bleu_2": two, "bleu_1": one}

    def right(self, sums: np.ndarray) -> np.ndarray:
        return np.minimum(sums[:, 0], 1.0)


class Pages:
    """Reading pages: edit distance per character, and the other scores of Nougat, Vary and GOT."""

    description = "edit distance / longer text, characters; 0 is best"
    percent, lower_is_better, closed, of_part = True, True, False, "edit_distance"
    parts: Mapping[str, Callable[[str, str], float]] = {
        "edit_distance": edit_distance,
        "bleu": bleu,
        "meteor": meteor,
        "precision": word_precision,
        "recall": word_recall,
        "f1": word_f1,
    }

    def sums(self, samples: Sequence[Sample], answers: Sequence[str]) -> np.ndarray:
        rows = [
            [*(part(answer, sample.answers[0]) for part in self.parts.values()), 1.0]
            for answer, sample in zip(answers, samples, strict=True)
        ]
        return np.array(rows).reshape(len(samples), -1)

    def figures(self, total: np.ndarray) -> Figures:
        return {name: _ratio(total[number], total[-1]) for number, name in enumerate(self.parts)}

    def right(self, sums: np.ndarray) -> np.ndarray:
        return 1 - sums[:, 0]


def _choice(answer: str, sample: Sample) -> float:
    return float(_is_choice(answer, sample))


def _is_choice(answer: str, sample: Sample) -> bool:
    return answer == sample.answers[0]


def _ocrbench(answer: str, sample: Sample) -> float:
    is_formula = sample.fields.get("formula", "") in ("HME100k", "Handwritten Mathematical Expression Recognition")
    return (ocrbench_formula if is_formula else ocrbench_contains)(answer, sample.answers)


SCORERS: Mapping[str, Scorer] = {
    "choice": Mean("accuracy", _choice, "the right option"),
    "circular": Circular(),
    "yes_no": YesNo(),
    "mme": Mme(),
    "vqa_accuracy": Mean("accuracy", lambda a, s: vqa_accuracy(a, s.answers), "VQA accuracy of ten people's answers"),
    "text_vqa_accuracy": Mean("accuracy", lambda a, s: text_vqa_accuracy(a, s.answers), "VQA accuracy (TextVQA)"),
    "gqa": Mean("accuracy", lambda a, s: gqa_exact(a, s.answers), "equal to the right answer (GQA)"),
    "exact": Mean("exact_match", lambda a, s: float(exact_match(a, s.answers[0])), "equal except for white space"),
    "same_text": Mean("accuracy", lambda a, s: same_text(a, s.answers), "equal except for case and white space"),
    "relaxed": Mean("accuracy", lambda a, s: relaxed_correctness(a, s.answers), "right, or a number at most 5 % off"),
    "anls": Mean("anls", lambda a, s: document_anls(a, s.answers), "similarity of short answers (DocVQA)"),
    "contains": Mean("accuracy", lambda a, s: ocrbench_contains(a, s.answers), "contains a right answer"),
    "ocrbench": Mean("accuracy", _ocrbench, "contains a right answer (OCRBench; 1.0 is 1000 points)"),
    "captions": Captions(),
    "pages": Pages(),
}


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else 0.0


def _positions(keys: Sequence[str]) -> dict[str, list[int]]:
    """Where each key is."""
    found: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        found.setdefault(key, []).append(number)
    return found
