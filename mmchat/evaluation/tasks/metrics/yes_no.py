"""Yes or no. Each function returns "yes", "no" or "", from any answer."""


def pope_word(answer: str) -> str:
    """ "no" if the first sentence has one of the words No, no and not, else "yes".

    As in POPE's `evaluate.py` (arXiv:2305.10355) and LLaVA's `eval_pope.py`. So an empty answer is a yes.
    """
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def mme_word(answer: str) -> str:
    """The word within the first four characters, as in MME's `calculation.py` (arXiv:2306.13394); "" if neither is."""
    beginning = answer.lower()[:4]
    return next((word for word in ("yes", "no") if word in beginning), "")
