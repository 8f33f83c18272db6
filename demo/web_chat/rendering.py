"""Texts of people and models as Markdown that shows what was written, and the chat's bubbles.

Gradio renders Markdown in the browser and sanitizes the HTML. Sanitized HTML would still be interpreted (`<b>`), and an
image in an answer would be fetched from its server. Here both lose their meaning: an invisible character follows every
`<`, `&` and `![` outside of code. script.js removes it from what is copied.
"""

import html
import re
from functools import lru_cache
from typing import Any

from web_chat.conversation import Conversation, Status, Turn

INVISIBLE = "\u200b"
"""Zero-width space."""
LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
# Code and formulas, in the order in which they are recognised. A formula between single dollars has no space inside
# its ends and no digit after it (Pandoc's rule), so that prices stay prices.
_PARTS = re.compile(
    r"(?P<code>(?:^|\n) {0,3}(?P<fence>`{3,}|~{3,})[^\n]*\n.*?(?:\n {0,3}(?P=fence)[`~]*[ \t]*(?=\n|$)|$)"
    r"|(?P<ticks>(?<!`)`+(?!`)).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<display>\$\$.+?\$\$|\\\[.+?\\\])"
    r"|(?P<inline>\\\(.+?\\\))"
    r"|(?<![\\$\w])\$(?=[^\s$])(?P<dollar>[^$\n]+?)(?<=\S)(?<!\\)\$(?![\d$])",
    re.DOTALL,
)


@lru_cache(maxsize=2048)  # all bubbles are rendered again while one grows
def to_markdown(text: str) -> str:
    """Markdown that shows `<`, `&` and image addresses of a text as they are."""
    pieces, position = [], 0
    for part in _PARTS.finditer(text):
        pieces.append(_inert(text[position : part.start()]))
        if part["code"]:
            pieces.append(part[0])
        elif part["dollar"]:
            pieces.append(f"\\({_formula(part['dollar'])}\\)")
        else:
            pieces.append(_formula(part[0]))
        position = part.end()
    return "".join([*pieces, _inert(text[position:])])


def from_markdown(text: str) -> str:
    """A text that a visitor edited, without invisible characters."""
    return text.replace(INVISIBLE, "")


def _inert(text: str) -> str:
    return re.sub(r"<|&|!(?=\[)", lambda found: found[0] + INVISIBLE, text)


def _formula(text: str) -> str:
    """LaTeX without `<` and `>`, which would be HTML if the browser did not take it for a formula."""
    return text.replace("<", r"\lt ").replace(">", r"\gt ")


def bubbles(conversation: Conversation) -> list[tuple[int, str, str]]:
    """What the chat shows: (number of the turn, "images" | "question" | "answer", text or HTML)."""
    shown = []
    for number, turn in enumerate(conversation.turns):
        if turn.images:
            shown.append((number, "images", thumbnails(turn)))
        shown.append((number, "question", to_markdown(turn.question)))
        if turn.state == "failed":
            shown.append((number, "answer", f"⚠ {_inert(turn.answer)}"))
        elif turn.answer or turn.state == "done":
            shown.append((number, "answer", to_markdown(turn.answer)))
    return shown


def thumbnails(turn: Turn) -> str:
    """HTML of a turn's images."""
    images = (
        f'<img src="{image.thumbnail}" alt="{html.escape(image.name)}, {image.size[0]} x {image.size[1]} pixels">'
        for image in turn.images
    )
    return f'<div class="thumbnails">{"".join(images)}</div>'


def status_html(status: Status | None, model: str = "") -> str:
    """One line about an answer."""
    if status is None:
        return ""
    speed = f"{status.speed:.{0 if status.speed >= 100 else 1}f} tokens/s" if status.speed else ""
    slots = f"{status.slots:,} image slots" if status.slots else ""
    shared = f"{status.shared_tokens:,} reused" if status.shared_tokens else ""
    of_these = ", ".join(part for part in (slots, shared) if part)
    used = f"context {status.prompt_tokens + status.new_tokens:,} of {status.context:,}"
    tokens = f"{status.new_tokens:,} token{'s' * (status.new_tokens != 1)}"
    first = f"first after {status.first_seconds:.2f} s"
    facts = [model, tokens, speed, first, used + (f" ({of_these})" if of_these else "")]
    line = " · ".join(html.escape(fact) for fact in facts if fact)
    return f'<p class="status">{line}{_cut_html(status)}</p>'


def _cut_html(status: Status) -> str:
    if status.reason == "length":
        full = status.prompt_tokens + status.new_tokens >= status.context
        why = "the context is full" if full else f"at the limit of {status.limit:,} tokens (Settings)"
        return f' <strong class="cut">cut off: {why}</strong>'
    if status.reason in ("cancelled", "repetition"):
        return (
            f" <strong>{ {'cancelled': 'stopped', 'repetition': 'stopped: it repeats itself'}[status.reason] }</strong>"
        )
    return ""


def to_messages(conversation: Conversation, html_part: Any) -> list[dict[str, Any]]:
    """Gradio's messages. `html_part(text)` makes a widget of HTML that is not sanitized."""
    messages = []
    for _, kind, text in bubbles(conversation):
        content = html_part(text) if kind == "images" else text
        messages.append({"role": "assistant" if kind == "answer" else "user", "content": content})
    return messages
