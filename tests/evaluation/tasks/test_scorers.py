"""Figures of whole tasks, by hand; and that any part of a task is scored by adding rows up."""

import numpy as np
import pytest

from mmchat.errors import UserError
from mmchat.evaluation.tasks.samples import Sample
from mmchat.evaluation.tasks.scorers import MME_COGNITION, MME_PERCEPTION, SCORERS


def sample(number, *answers, **more):
    return Sample(str(number), "?", answers, group=more.pop("group", str(number)), **more)


def figures(name, samples, answers):
    scorer = SCORERS[name]
    return scorer.figures(scorer.sums(samples, answers).sum(axis=0))


def test_yes_no():
    """3 true positives, 1 false positive, 2 false negatives, 4 true negatives."""
    right = ["yes", "Yes", "yes", "no", "yes", "yes", "no", "No", "no", "no"]
    said = ["yes", "yes", "yes", "yes", "no", "no", "no", "no", "no", "no"]
    found = figures("yes_no", [sample(n, text) for n, text in enumerate(right)], said)
    assert found == pytest.approx(
        {"f1": 2 * 3 / (2 * 3 + 1 + 2), "accuracy": 0.7, "precision": 3 / 4, "recall": 3 / 5, "yes_share": 0.4}
    )
    assert next(iter(found)) == "f1"


def test_yes_no_without_any_yes():
    assert figures("yes_no", [sample(1, "no")], ["no"])["f1"] == 0


def test_circular():
    """Of three questions one is right in all orders, one in the first only, one in the second only."""
    samples = [sample(f"{group}#{turn}", "A", group=group) for group in "xyz" for turn in range(2)]
    found = figures("circular", samples, ["A", "A", "A", "B", "", "A"])
    assert found == pytest.approx({"circular": 1 / 3, "accuracy": 2 / 3})


def mme_sample(category, image, answer):
    return sample(f"{category}{image}{answer}", answer, group=f"{category}/{image}", fields={"category": category})


def test_mme():
    """existence: 3 of 4 right (75), one of two images right (50); OCR: all right (200); code_reasoning: 0."""
    samples = [mme_sample(c, i, a) for c, i in (("existence", 1), ("existence", 2), ("OCR", 1)) for a in ("Yes", "No")]
    samples += [mme_sample("code_reasoning", 1, a) for a in ("Yes", "No")]
    found = figures("mme", samples, ["yes", "no", "yes", "yes", "yes", "no", "", "yes"])
    assert found == pytest.approx({"perception": 75 + 50 + 200, "cognition": 0, "total": 325})


def test_mme_at_best():
    samples = [mme_sample(c, i, a) for c in (*MME_PERCEPTION, *MME_COGNITION) for i in (1, 2) for a in ("Yes", "No")]
    found = figures("mme", samples, ["yes", "no"] * (len(samples) // 2))
    assert found == {"perception": 2000, "cognition": 800, "total": 2800}


def test_mme_needs_pairs_and_its_categories():
    with pytest.raises(UserError, match="two questions about an image; existence/1 has 1"):
        figures("mme", [mme_sample("existence", 1, "Yes")], ["yes"])
    with pytest.raises(UserError, match="category 'x' is none of MME's"):
        figures("mme", [mme_sample("x", 1, "Yes"), mme_sample("x", 1, "No")], ["yes", "no"])


def test_ocrbench():
    """A formula with its case and without spaces, other text in any case."""
    samples = [sample(1, "x ^ 2", fields={"formula": "HME100k"}), sample(2, "Net", fields={"formula": "IIIT5K"})]
    assert figures("ocrbench", samples, ["= x^2", "the NET"]) == {"accuracy": 1.0}
    assert figures("ocrbench", samples, ["X^2", "n et"]) == {"accuracy": 0.0}


def test_means():
    assert figures("relaxed", [sample(1, "100"), sample(2, "x")], ["104", "y"]) == {"accuracy": 0.5}
    assert figures("choice", [sample(1, "A"), sample(2, "B")], ["A", ""]) == {"accuracy": 0.5}
    assert figures("anls", [sample(1, "denver", "boulder")], ["denvar"]) == {"anls": pytest.approx(5 / 6)}


def test_pages():
    found = figures("pages", [sample(1, "abcd"), sample(2, "ab cd")], ["abcd", "ab xx"])
    assert found["edit_distance"] == pytest.approx((0 + 2 / 5) / 2)
    assert found["recall"] == pytest.approx((1 + 1 / 2) / 2)


def test_captions():
    found = figures("captions", [sample(1, "a red dog ran"), sample(2, "two cats sat there")], ["a red dog ran", "no"])
    assert found["cider"] == pytest.approx(5.0)  # 10 and 0
    assert found["bleu_1"] == pytest.approx(np.exp(1 - 8 / 5) * 4 / 5)


def corpus(name):
    rng = np.random.default_rng(1)
    if name == "mme":
        samples = [mme_sample(c, i, a) for c in ("OCR", "count") for i in range(6) for a in ("Yes", "No")]
        return samples, [("yes", "no")[bit] for bit in rng.integers(2, size=len(samples))]
    if name == "circular":
        samples = [sample(f"{group}#{turn}", "AB"[turn], group=str(group)) for group in range(12) for turn in (0, 1)]
        return samples, ["AB"[bit] for bit in rng.integers(2, size=24)]
    words = ["yes", "no", "a red dog", "two", "12"]
    answers = [words[place] for place in rng.integers(5, size=24)]
    return [sample(n, words[n % 5], "no") for n in range(24)], answers


@pytest.mark.parametrize("name", SCORERS)
def test_sums_add_up(name):
    """One number per figure, also of a part; `right` is from 0 to 1; what is right is right."""
    scorer = SCORERS[name]
    samples, answers = corpus(name)
    sums = scorer.sums(samples, answers)
    assert len(sums) == len(samples)
    whole, part = scorer.figures(sums.sum(axis=0)), scorer.figures(sums[:8].sum(axis=0))
    assert whole.keys() == part.keys()
    assert all(np.isfinite([*whole.values(), *part.values()]))
    right = scorer.right(sums)
    assert right.shape == (24,)
    assert ((right >= 0) & (right <= 1)).all()
    perfect = scorer.sums(
        samples, [s.answers[0].lower() if name in ("mme", "yes_no") else s.answers[0] for s in samples]
    )
    if name not in ("captions", "vqa_accuracy", "text_vqa_accuracy"):
        assert scorer.right(perfect) == pytest.approx(1)
