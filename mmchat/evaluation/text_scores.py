"""OCR scores: a predicted text against the reference, as Vary and GOT report them.

The set of scores is that of Nougat (arXiv:2308.13418), also used by Vary (arXiv:2312.06109) and GOT (arXiv:2409.01704,
`eval/pyevaltools/eval_ocr.py`). Each scores one text; reports take the mean. An empty prediction of an empty reference
is perfect. No torch here.
"""

import re
import warnings
from collections.abc import Sequence

from mmchat.extras import require

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""Ideographs: Unicode's CJK blocks, extensions A to H, and compatibility ideographs of plane 0."""
CHINESE_MARKS = "\u3001-\u301f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
"""Punctuation of Chinese text: of U+3000 and of full width."""

_WORD = re.compile(f"[{HAN}{CHINESE_MARKS}]|[^{HAN}{CHINESE_MARKS}\\s]+")


def split_words(text: str) -> list[str]:
    """Split at white space. Chinese has none, so each ideograph and each Chinese punctuation mark is a word.

    GOT splits Chinese by jieba's dictionary instead, so its word scores of imperfect readings are lower.
    """
    return _WORD.findall(text)


def edit_distance(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Levenshtein distance / length of the longer sequence: 0 is equal, 1 is nothing in common.

    For characters (str) or words (list). Vary and GOT report it over characters, including white space.
    """
    require("rapidfuzz")
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_distance(prediction, reference)


def bleu(prediction: str, reference: str) -> float:
    """BLEU-4 of one text, without smoothing (Papineni et al. 2002, doi:10.3115/1073083.1073135), as in nltk.

    It is 0 unless four consecutive words are right, so it is meaningless for short texts.
    """
    require("nltk")
    from nltk.translate.bleu_score import sentence_bleu

    if not split_words(reference):
        return float(not split_words(prediction))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="\nThe hypothesis contains 0 counts")
        return float(sentence_bleu([split_words(reference)], split_words(prediction)))


def meteor(prediction: str, reference: str) -> float:
    """METEOR (Lavie and Agarwal 2007) of one text, as in nltk. Words match if they are equal or share their stem.

    Synonyms do not match: they need the WordNet files, and in OCR a synonym is an error. A perfect reading of n words
    scores 1 - 1 / (2 n^3), because METEOR's fragmentation penalty also applies to a single chunk.
    """
    require("nltk")
    from nltk.translate.meteor_score import meteor_score

    if not split_words(reference):
        return float(not split_words(prediction))
    return float(meteor_score([split_words(reference)], split_words(prediction), wordnet=_NoSynonyms()))


class _NoSynonyms:
    """Replaces WordNet in nltk."""

    def synsets(self, word: str) -> list:
        return []


def word_precision(prediction: str, reference: str) -> float:
    """Share of the distinct predicted words that occur in the reference."""
    predicted, expected = set(split_words(prediction)), set(split_words(reference))
    return len(predicted & expected) / len(predicted) if predicted else float(not expected)


def word_recall(prediction: str, reference: str) -> float:
    """Share of the distinct words of the reference that were predicted."""
    return word_precision(reference, prediction)


def word_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of `word_precision` and `word_recall`."""
    precision, recall = word_precision(prediction, reference), word_recall(prediction, reference)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
