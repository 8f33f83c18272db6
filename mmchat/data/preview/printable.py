"""Make text from data sets safe and readable: no control characters, visible white space."""

import re
import unicodedata


def printable(text: str, line_break: str = "↵") -> str:
    """Replace invisible characters and those that control the terminal or the writing direction by visible ones."""
    return "".join(line_break if character == "\n" else _printable(character) for character in text)


def _printable(character: str) -> str:
    category = unicodedata.category(character)
    if character == "\t":
        return "⇥"
    if category == "Zs" and character != " ":
        return "␣"
    joins_emoji = character == "\u200d"
    if category in ("Zl", "Zp") or (category[0] == "C" and not joins_emoji):
        return f"⟨U+{ord(character):04X}⟩"
    return character


def mark_spaces(text: str) -> str:
    """Replace spaces that cannot be seen by dots: at the ends of lines, and runs of several."""
    return re.sub(r"^ +| +$|  +", lambda match: "·" * len(match[0]), text, flags=re.MULTILINE)
