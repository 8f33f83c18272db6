"""Each metric against scikit-learn, or against a slow reading of its definition."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from mmchat.evaluation.metrics import (
    bootstrap_interval,
    calibration_error,
    mean_per_class,
    ranks_of_targets,
    retrieval_ranks,
    share_interval,
)


@pytest.fixture
def guesses():
    """(scores float[200, 7], targets int[200])"""
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 7)), rng.integers(7, size=200)


def test_ranks_give_top_k(guesses):
    scores, targets = guesses
    ranks = ranks_of_targets(scores, targets)
    for k in (1, 3, 5):
        assert (ranks < k).mean() == pytest.approx(top_k_accuracy_score(targets, scores, k=k))
    assert np.array_equal(ranks == 0, scores.argmax(axis=1) == targets)
    # Where all scores are equal, rank 0 is still what argmax says.
    assert ranks_of_targets(np.zeros((2, 3)), np.array([0, 2])).tolist() == [0, 2]
    assert ranks_of_targets(np.zeros((0, 3)), np.array([], int)).tolist() == []


def test_mean_per_class(guesses):
    scores, targets = guesses
    targets = np.where(targets == 3, 2, targets)  # a class without an image
    predicted = np.where(targets < 2, targets, np.minimum(scores.argmax(axis=1), 2))
    assert mean_per_class(targets, predicted == targets) == pytest.approx(balanced_accuracy_score(targets, predicted))


def test_calibration_error():
    rng = np.random.default_rng(1)
    confidences, hits = (
        np.append(rng.uniform(size=300), [1 / 15, 2 / 15, 1.0]),
        np.append(rng.random(300) < 0.4, [1, 0, 1]),
    )
    expected = 0.0
    for number in range(15):
        inside = (confidences > number / 15) & (confidences <= (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(hits[inside].mean() - confidences[inside].mean())
    assert calibration_error(confidences, hits) == pytest.approx(expected)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0
    # The end of a bin belongs to it: of these two each has a bin of its own.
    assert calibration_error(np.array([1 / 15, 0.1]), np.array([True, False])) == pytest.approx((14 / 15 + 0.1) / 2)


def test_intervals():
    # Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3: 81 of 263.
    assert share_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    hits = np.arange(400) % 4 == 0
    low, high = bootstrap_interval(lambda drawn: hits[drawn].mean(), 400)
    assert (low, high) == pytest.approx(share_interval(100, 400), abs=0.01)
    assert bootstrap_interval(lambda drawn: hits[drawn].mean(), 400) == (low, high)


def test_retrieval(monkeypatch):
    monkeypatch.setattr("mmchat.evaluation.metrics.QUERIES_AT_A_TIME", 3)
    rng = np.random.default_rng(2)
    queries, gallery = rng.normal(size=(8, 4)), rng.normal(size=(20, 4))
    right = [sorted(rng.choice(20, size=1 + number % 3, replace=False).tolist()) for number in range(8)]
    expected = []
    for query, wanted in zip(queries, right, strict=True):
        order = np.argsort(-(gallery @ query)).tolist()
        expected.append(next(place for place, found in enumerate(order) if found in wanted))
    assert retrieval_ranks(queries, gallery, right).tolist() == expected
    # A model that sees everything alike finds nothing.
    assert retrieval_ranks(np.ones((1, 4)), np.ones((20, 4)), [[0, 5]]).tolist() == [18]
