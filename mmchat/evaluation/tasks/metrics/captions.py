"""CIDEr-D and BLEU of captions, as sums over captions, so that any part of a corpus can be scored.

Equal to `cider` and `bleu` of pycocoevalcap (the COCO caption evaluation) on the corpus of
tests/fixtures/coco_captions.json, to 12 digits. pycocoevalcap needs Java for its tokens.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from mmchat.evaluation.tasks.metrics.ptb import caption_tokens

LONGEST = 4
"""Words of the longest n-gram."""
SIGMA = 6.0
"""Width of CIDEr-D's penalty for captions of another length, in words (arXiv:1411.5726, section 6)."""
SMALL, TINY = 1e-9, 1e-15
"""What `bleu_scorer.py` adds to counts below and above the line."""

NGrams = Counter[tuple[str, ...]]


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of every caption. Their mean is the score of the corpus; a perfect one is about 10, written as 1000 %.

    How much an n-gram counts depends on how many images' references have it, so a caption's score depends on the whole
    corpus, and is 0 if that is one image.

    Args:
        predictions: The captions.
        references: The right captions of each.

    Returns:
        float[N].
    """
    found = [_ngrams(caption_tokens(text)) for text in predictions]
    right = [[_ngrams(caption_tokens(text)) for text in texts] for texts in references]
    images_with = Counter(ngram for group in right for ngram in set().union(*group))
    weights = _Weights(images_with, len(right))
    return np.array([_cider_of_one(weights, one, group) for one, group in zip(found, right, strict=True)])


def bleu_counts(prediction: str, references: Sequence[str]) -> np.ndarray:
    """What BLEU needs of a caption: right n-grams and all n-grams of each length, its words, those of the reference.

    The reference's length is that of the one whose length is nearest, the shorter of two.

    Returns:
        float[10]: 4, 4, 1, 1.
    """
    words = caption_tokens(prediction)
    found, most = _ngrams(words), Counter[tuple[str, ...]]()
    lengths = []
    for text in references:
        tokens = caption_tokens(text)
        most |= _ngrams(tokens)
        lengths.append(len(tokens))
    right, total = np.zeros(LONGEST), np.zeros(LONGEST)
    for ngram, count in found.items():
        right[len(ngram) - 1] += min(count, most[ngram])
        total[len(ngram) - 1] += count
    nearest = min((abs(length - len(words)), length) for length in lengths)[1]
    return np.array([*right, *total, len(words), nearest])


def bleu_of_counts(counts: np.ndarray) -> list[float]:
    """BLEU-1 to BLEU-4 from the sum of `bleu_counts` of a corpus."""
    right, total, (words, nearest) = counts[:LONGEST], counts[LONGEST : 2 * LONGEST], counts[2 * LONGEST :]
    precisions = (right + TINY) / (total + SMALL)
    ratio = (words + TINY) / (nearest + SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return [float(np.prod(precisions[:n]) ** (1 / n) * penalty) for n in range(1, LONGEST + 1)]


def _ngrams(words: Sequence[str]) -> NGrams:
    return Counter(
        tuple(words[start : start + n]) for n in range(1, LONGEST + 1) for start in range(len(words) - n + 1)
    )


class _Weights:
    """TF-IDF vectors of captions.

    Args:
        images_with: In the references of how many images an n-gram is.
        images: Number of images.
    """

    def __init__(self, images_with: NGrams, images: int) -> None:
        self._images_with, self._log_images = images_with, math.log(images)

    def __call__(self, ngrams: NGrams) -> list[dict[tuple[str, ...], float]]:
        """The weights of n-grams, for each length."""
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
        for ngram, count in ngrams.items():
            rarity = self._log_images - math.log(max(1, self._images_with[ngram]))
            vectors[len(ngram) - 1][ngram] = count * rarity
        return vectors


def _cider_of_one(weights: _Weights, found: NGrams, references: Iterable[NGrams]) -> float:
    vectors, length, scores = weights(found), _bigrams(found), []
    for reference in references:
        others = weights(reference)
        penalty = math.exp(-((length - _bigrams(reference)) ** 2) / (2 * SIGMA**2))
        scores.append(np.mean([_clipped_cosine(*pair) for pair in zip(vectors, others, strict=True)]) * penalty)
    return 10 * float(np.mean(scores))


def _clipped_cosine(one: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float]) -> float:
    """A word that is repeated more often than in the reference gains nothing."""
    product = sum(min(weight, other[ngram]) * other[ngram] for ngram, weight in one.items() if ngram in other)
    norms = math.hypot(*one.values()) * math.hypot(*other.values())
    return product / norms if norms else product


def _bigrams(ngrams: NGrams) -> int:
    """CIDEr-D's program takes the number of pairs of words for the length."""
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 2)
