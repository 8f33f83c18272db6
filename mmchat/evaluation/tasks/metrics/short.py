"""Short answers with one or more right ones, each scored as the benchmark's own program does it.

`mmchat.evaluation.answer_scores` has the scores of `mmchat eval --metric`, which read numbers and white space more
tolerantly.
"""

from collections.abc import Sequence

from mmchat.extras import require


def document_anls(prediction: str, answers: Sequence[str]) -> float:
    """ANLS of one answer, as in the program of the Robust Reading Competition (DocVQA and InfographicVQA, `--anls`).

    It differs from the formula of the paper (arXiv:1907.00490): a similarity of exactly 0.5 counts, and the length is
    that of the texts with all their white space, while distances are between texts with single spaces.
    """
    require("rapidfuzz")
    from rapidfuzz.distance import Levenshtein

    def distance(answer: str) -> float:
        longest = max(len(answer.upper()), len(prediction.upper()))
        return Levenshtein.distance(_single_spaces(prediction), _single_spaces(answer)) / longest if longest else 0.0

    similarity = 1 - min(map(distance, answers))
    return similarity if similarity >= 0.5 else 0.0


def relaxed_correctness(prediction: str, answers: Sequence[str]) -> float:
    """1 if the answer is right or a number at most 5 % off, else 0 (ChartQA, arXiv:2203.10244, section 5.1).

    As `relaxed_correctness` of pix2struct's `metrics.py`, which Qwen-VL, lmms-eval and VLMEvalKit use: "5%" is 0.05,
    and a right answer of 0 must be written alike. White space around the answer does not count, as in VLMEvalKit.
    """
    return float(any(_is_relaxed(prediction.strip(), answer) for answer in answers))


def _is_relaxed(prediction: str, answer: str) -> bool:
    guess, right = _number(prediction), _number(answer)
    if guess is not None and right:
        return abs(guess - right) / abs(right) <= 0.05
    return prediction.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def gqa_exact(prediction: str, answers: Sequence[str]) -> float:
    """1 if the answer is that of GQA, else 0, in lower case and without a period at its end.

    GQA's `eval.py` (arXiv:1902.09506) compares texts as they stand; LLaVA's `convert_gqa_for_eval.py` prepares them so.
    """
    guess = prediction.rstrip(".").lower()
    return float(guess in answers)


def ocrbench_contains(prediction: str, answers: Sequence[str]) -> float:
    """1 if the answer contains a right one in any case, else 0 (OCRBench, arXiv:2305.07895, `example.py`)."""
    text = _in_one_line(prediction.lower())
    return float(any(_in_one_line(answer.lower()) in text for answer in answers))


def ocrbench_formula(prediction: str, answers: Sequence[str]) -> float:
    """As `ocrbench_contains` for formulas (HME100k): case counts and spaces do not."""
    text = _in_one_line(prediction).replace(" ", "")
    return float(any(_in_one_line(answer).replace(" ", "") in text for answer in answers))


def same_text(prediction: str, answers: Sequence[str]) -> float:
    """1 if the answer is one of the right ones, except for case and white space, else 0."""
    return float(any(_single_spaces(prediction) == _single_spaces(answer) for answer in answers))


def _in_one_line(text: str) -> str:
    return text.strip().replace("\n", " ")


def _single_spaces(text: str) -> str:
    return " ".join(text.lower().split())
