"""The option that an answer chooses. Each function takes the answer and the options' texts, and returns a letter or "".

An answer that chooses none, or several, is wrong; nothing is drawn at random and no other model is asked.
"""

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_AROUND_LETTERS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_AT_THE_BEGINNING = re.compile(r"([A-E])\. ")
_THE_ANSWER_IS = re.compile(r"The answer is ([A-E])")


def letters(options: Sequence[str]) -> dict[str, str]:
    """The options by letter: A, B, C, ..."""
    return dict(zip(ascii_uppercase, options, strict=False))


def letter_or_text(answer: str, options: Sequence[str]) -> str:
    """The only letter that stands alone in the answer, else the only option whose text is in it.

    As `can_infer` of VLMEvalKit (vlmeval/utils/matching_util.py) with exact matching: no judge, and not its cautious
    mode, in which "A" in a long answer is an article.
    """
    if any(refusal in answer for refusal in REFUSALS):
        return ""
    known = letters(options)
    words = answer.translate(_AROUND_LETTERS).split()
    found = [letter for letter in known if letter in words]
    if len(found) == 1:
        return found[0]
    if not found and "Z" in words:  # "none of them"
        return ""
    return _by_text(answer, known)


def _by_text(answer: str, options: Mapping[str, str]) -> str:
    if len(answer) > 2 * sum(map(len, options.values())):
        return ""
    found = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return found[0] if len(found) == 1 else ""


def first_letter(answer: str, options: Sequence[str]) -> str:
    """The first character, as lmms-eval takes it for SEED-Bench (`seed_process_result`)."""
    letter = answer.strip()[:1]
    return letter if letter in letters(options) else ""


def scienceqa_letter(answer: str, options: Sequence[str]) -> str:
    """A lone letter, "B. ..." or "The answer is B", as in LLaVA's `eval_science_qa.py`."""
    text = answer.replace("\n", ". ")
    alone = text.strip() if text.strip() in tuple("ABCDE") else ""
    found = _AT_THE_BEGINNING.match(text) or _THE_ANSWER_IS.search(text)
    letter = alone or (found[1] if found else "")
    return letter if letter in letters(options) else ""


def mmstar_letter(answer: str, options: Sequence[str]) -> str:
    """The letter at the beginning, in any case, as in MMStar's `exact_match` (lmms_eval/tasks/mmstar/utils.py).

    It may stand in a parenthesis, or follow "option" or "the answer is". A word with such a letter at its beginning
    counts as that letter, as it does there.
    """
    text = answer.lower().strip().replace("\n", " ")
    for before in ("", "(", "option ", "the answer is "):
        letter = text.removeprefix(before)[:1].upper() if text.startswith(before) else ""
        if letter and letter in letters(options):
            return letter
    return ""
