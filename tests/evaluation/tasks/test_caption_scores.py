"""Tokens, CIDEr-D and BLEU equal those of pycocoevalcap (scripts/foreign/coco_captions.sh), and cases by hand."""

import json
import math

import numpy as np
import pytest

from mmchat.evaluation.tasks.metrics.captions import bleu_counts, bleu_of_counts, cider
from mmchat.evaluation.tasks.metrics.ptb import caption_tokens


@pytest.fixture(scope="module")
def official(data_dir):
    return json.loads((data_dir / "coco_captions.json").read_text(encoding="utf-8"))


def test_tokens(official):
    different = [text for text, tokens in official["tokens"] if " ".join(caption_tokens(text)) != tokens]
    assert len(official["tokens"]) > 400
    assert different == official["different_here"]
    assert len(different) <= 5


def test_the_scores_of_a_corpus(official):
    predictions = [one["prediction"] for one in official["corpus"]]
    references = [one["references"] for one in official["corpus"]]
    scores = cider(predictions, references)
    assert scores.mean() == pytest.approx(official["cider"], rel=1e-12)
    assert scores == pytest.approx(official["cider_of_each"], rel=1e-12, abs=1e-15)
    counts = sum(bleu_counts(*pair) for pair in zip(predictions, references, strict=True))
    assert bleu_of_counts(counts) == pytest.approx(official["bleu"], rel=1e-12)


def test_cider_by_hand():
    """Two images; every n-gram is in the references of one, so its weight is log 2, and equal captions score 10."""
    assert cider(["a red dog ran", "two cats sat there"], [["a red dog ran"], ["two cats sat there"]]) == pytest.approx(
        10
    )
    # One of two words is right: cosine 1/2 for single words, 0 for pairs; no longer n-grams, no penalty.
    half = cider(["red dog", "x y"], [["red cat"], ["x y"]])[0]
    assert half == pytest.approx(10 * (1 / 2) / 4)
    # Two words more than the reference: all of the reference's are right, and the lengths differ by two pairs.
    penalty = math.exp(-(2**2) / (2 * 6**2))
    longer = cider(["red dog big hat", "x y"], [["red dog"], ["x y"]])[0]
    assert longer == pytest.approx(10 * (2 / math.sqrt(4 * 2) + 1 / math.sqrt(3 * 1)) / 4 * penalty)
    # A word that both images have weighs nothing.
    assert cider(["dog", "dog"], [["dog"], ["dog"]]) == pytest.approx(0)


def test_bleu_by_hand():
    counts = bleu_counts("the the the cat", ["the cat sat", "a cat"])
    assert counts.tolist() == [2, 1, 0, 0, 4, 3, 2, 1, 4, 3]  # "the" counts once, as often as in a reference
    one, two, three, _ = bleu_of_counts(counts)
    assert one == pytest.approx(2 / 4)
    assert two == pytest.approx(math.sqrt(2 / 4 * 1 / 3))
    assert three == pytest.approx(0, abs=1e-4)
    short = bleu_counts("the cat", ["the cat sat"])
    assert bleu_of_counts(short)[1] == pytest.approx(math.exp(1 - 3 / 2))
    assert bleu_of_counts(np.zeros(10)) == pytest.approx([0, 0, 0, 0], abs=1e-4)
