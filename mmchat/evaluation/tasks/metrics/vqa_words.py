"""Words that VQA accuracy rewrites. The set is that of `vqaEval.py` of GT-Vision-Lab/VQA, its mistakes included.

Words are in lower case when they are looked up, so the official entries with a capital never apply and are left out.
"""

_ZERO_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(_ZERO_TO_TEN)} | {"none": "0"}

_WITH_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
"""Words that are often written without their apostrophe."""
_WITH_TWO = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've you'd've
"""
"""Words with two apostrophes, either of which may be missing."""

CONTRACTIONS = {word.replace("'", ""): word for word in _WITH_APOSTROPHE.split()}
for _word in _WITH_TWO.split():
    _first, _second, _third = _word.rsplit("'", 2)
    CONTRACTIONS |= {f"{_first}{_second}'{_third}": _word, f"{_first}'{_second}{_third}": _word}
CONTRACTIONS |= {
    "somebody'd": "somebodyd",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}
