"""How well a page was read: scores of a text against the one that stands there, as Vary and GOT report them.

The set of scores is that of Nougat (arXiv:2308.13418), which Vary (arXiv:2312.06109) and GOT
(arXiv:2409.01704, `eval/pyevaltools/eval_ocr.py`) took over. Each is of one text; a report takes their mean.
Nothing read where nothing stands is a perfect reading. No torch here.
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


def words(text: str) -> list[str]:
    """What stands between white space; Chinese has none, so each ideograph and each of its marks is a word.

    GOT cuts Chinese by jieba's dictionary instead: its figures of words are lower where a reading is not perfect.
    """
    return _WORD.findall(text)


def edit_distance(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Levenshtein's distance / length of the longer one: 0 equal, 1 nothing in common. Of characters, or of words.

    Vary and GOT give it over characters, white space included.
    """
    require("rapidfuzz")
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_distance(prediction, reference)


def bleu(prediction: str, reference: str) -> float:
    """BLEU of one text, 1 to 4 words, no smoothing (Papineni et al. 2002, doi:10.3115/1073083.1073135), as in nltk.

    Without four words in a row that are right it is 0, so it says nothing of short texts.
    """
    require("nltk")
    from nltk.translate.bleu_score import sentence_bleu

    if not words(reference):
        return float(not words(prediction))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="\nThe hypothesis contains 0 counts")
        return float(sentence_bleu([words(reference)], words(prediction)))


def meteor(prediction: str, reference: str) -> float:
    """METEOR (Lavie and Agarwal 2007) of one text, by words that are equal or share their stem, as in nltk.

    Synonyms are left out: they need WordNet's files, and a page that is read has the word that stands there or not. A
    perfect reading of n words has 1 - 1 / (2 n^3), because METEOR counts even one chunk as broken off.
    """
    require("nltk")
    from nltk.translate.meteor_score import meteor_score

    if not words(reference):
        return float(not words(prediction))
    return float(meteor_score([words(reference)], words(prediction), wordnet=_NoSynonyms()))


class _NoSynonyms:
    """Stands where nltk asks WordNet."""

    def synsets(self, word: str) -> list:
        return []


def word_precision(prediction: str, reference: str) -> float:
    """Share of the different words read that stand there."""
    read, there = set(words(prediction)), set(words(reference))
    return len(read & there) / len(read) if read else float(not there)


def word_recall(prediction: str, reference: str) -> float:
    """Share of the different words standing there that were read."""
    return word_precision(reference, prediction)


def word_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of both."""
    precision, recall = word_precision(prediction, reference), word_recall(prediction, reference)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
