"""Tokens of a caption as the COCO caption evaluation counts them.

There, Stanford's PTBTokenizer (CoreNLP 3.4.1, options `-preserveLines -lowerCase`) makes tokens, and pycocoevalcap's
`ptbtokenizer.py` removes punctuation. This module needs no Java. tests/fixtures/coco_captions.json holds what those
two made of several hundred sentences, and the few of them that come out differently here. Brackets become `-lrb-`, a
token that stays, because only its upper-case form is removed; so it does here.
"""

import re

REMOVED = frozenset(['"', "'", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Straight quotes stand for those of the Penn Treebank, which the original removes."""
_QUOTES = {
    **dict.fromkeys(("\N{LEFT DOUBLE QUOTATION MARK}", "\N{RIGHT DOUBLE QUOTATION MARK}", "«", "»"), '"'),
    **dict.fromkeys(("\N{LEFT SINGLE QUOTATION MARK}", "\N{RIGHT SINGLE QUOTATION MARK}", "`"), "'"),
}
_REWRITTEN = {
    **_QUOTES,
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{EM DASH}": " -- ",
    "\N{EN DASH}": " -- ",
    "&amp;": "&",
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
    "€": "$",
    "£": "#",
    "¥": "$",
    "¢": " cents",
}
_REWRITE = re.compile("|".join(map(re.escape, _REWRITTEN)))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_TWO_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
_ABBREVIATIONS = (
    "Mr|Mrs|Ms|Dr|Drs|Prof|St|Jr|Sr|vs|etc|Inc|Ltd|Co|Corp|Bros|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|"
    "Tues?|Wed|Thurs?|Fri|Ave|Blvd|Rd|ft|Gen|Gov|Sen|Rep|Rev|Lt|Col|Sgt|Capt|Mt|Dept|est|tel|p|pp|Calif|Tex|Ariz|"
    "Mass|Pa|Va|(?:No|Fig)(?=\\.\\ ?\\d)"
)
_TOKEN = re.compile(
    rf"""
    </?[A-Za-z]\w*/?>                                       # tags of markup
    | https?://[^\s>]+ | www\.[^\s,]+ | [\w.+-]+@[\w-]+(?:\.[\w-]+)+
    | [#@][^\W\d]\w*                                        # tags and names
    | (?<!\w)Ph\.D\.?
    | (?<!\w)(?:[^\W\d_]\.)+[^\W\d_](?!\w)\.?               # U.S. and a.m., and e.g without its last period
    | (?<!\w)(?i:no)\.(?=\d)
    | (?<![\w'])(?i:{_ABBREVIATIONS})\.(?!\w)
    | (?<![\w'])[B-Z]\. | (?<![\w'])A\.(?=\s+\S)            # initials
    | (?<![\w.])\d+:\d\d(?=[ap]m(?!\w)|-\d)                # 10:30am and 9:00-5:00
    | (?<!\w)\d+\ \d+/\d+(?!\w)                            # 2 1/2 is one token
    | (?<![^\W\d_])(?<!\.)[-+]?\.?\d+(?:[.:,/]\d+)*(?![\w/-])(?!\.\d)    # 1,000.50, 10:30 and 1/2
    | (?<![\w.])[-+]?\d+\.\d+(?=/|[^\W\d_])                # 1.50/lb and 0.5m
    | '\d\ds(?!\w)                                          # '90s
    | '(?i:tis|twas|n'|em|cause)(?!\w) | '(?i:n)'(?=\w)
    | '(?i:s|m|d|ll|re|ve|n)(?!\w) | (?i:n't)(?!\w) | (?i:y)'(?=(?i:all))
    | (?i:o'clock|c'mon|ma'am|(?:o|d|l|c)'[^\W\d_]\w+?)(?='s(?!\w)|(?![\w']))
    | [^\W\d_]&[^\W\d_](?<=[A-Z]&[A-Z])(?!\w) | [A-Z]+&[A-Z]+(?!\w)      # B&W and AT&T
    | C\+\+ | C\#
    | (?i:\w+(?:[-/._]+\w+)*?n't)(?!\w)                     # split later
    | \w+(?:(?:[-/_]|\.(?=\w)|!(?=[A-Z]))\w+)*
    | [:;]-?[()] | \(\d{{3}}\)(?=\ \d{{3}}-)                    # smileys and area codes
    | \.{{3,}} | -{{2,}} | [!?]{{2,}}
    | \S
    """,
    re.VERBOSE,
)
_NOT_TEXT = re.compile("[\U00010000-\U0001ffff\ufe0f\u200d]")
"""Emoji, which the tokenizer drops."""


def caption_tokens(caption: str) -> list[str]:
    """The tokens that count, in lower case."""
    text = _NOT_TEXT.sub("", _REWRITE.sub(lambda found: _REWRITTEN[found[0]], caption))
    tokens = [part for match in _TOKEN.finditer(text) for part in _parts(match[0].lower())]
    return [token for token in tokens if token not in REMOVED]


def _parts(token: str) -> tuple[str, ...]:
    if token.endswith("n't") and len(token) > 3:
        return token[:-3], "n't"
    if token in _TWO_WORDS:
        return _TWO_WORDS[token]
    if token.startswith("..."):
        return ("...",)
    return ("".join(_BRACKETS.get(sign, sign) for sign in token).replace(" ", "\N{NO-BREAK SPACE}"),)
