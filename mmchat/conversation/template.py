"""What a template is; the templates themselves are in templates.py."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Template:
    """One conversation, in the order it is written:

        system[0] SYSTEM system[1]
        user[0] TEXT user[1]  header answer[0] TEXT answer[1] after_answer
        next_user user[0] TEXT user[1]  header ...
        end

    and where tools speak, `tools[0]  tool[0] TEXT tool[1]  tool[0] TEXT tool[1] ...  tools[1]  header ...`.

    A literal is text that the template itself writes. In it `{bos}` and `{eos}` stand for the tokenizer's own
    tokens. Whatever in it spells an added token of the tokenizer is that token, as when the text is tokenised
    ("[INST]" is one for Mistral v0.3, text for v0.2); the rest is text.

    `answer` (both sides) and, after an assistant turn, `end` are supervised; nothing else is but the
    assistant's text. `header` is also what a generation prompt ends with.
    """

    name: str
    user: tuple[str, str] = ("", "")
    answer: tuple[str, str] = ("", "")
    header: str = ""
    after_answer: str = ""
    next_user: str = ""
    """Before every user turn but the first."""
    end: str = ""
    system: tuple[str, str] | None = None
    """None: the template has no place for a system message. An empty message writes nothing at all."""
    default_system: str = ""
    system_in_user: bool = False
    """The system block stands inside the first user turn, after `user[0]`."""
    tool: tuple[str, str] | None = None
    """Around each tool message. None: the template has no place for them."""
    tools: tuple[str, str] = ("", "")
    """Around tool messages that follow each other."""
    control: tuple[str, ...] = ()
    """The added tokens without which the tokenizer does not fit this template."""
    user_text: Literal["keep", "drop", "drop_beside_images"] = "keep"
    """What becomes of a user's words: pretraining templates keep only the images."""
    one_exchange: bool = False
    """Exactly one user turn with at least one image, and its answer."""
    alternating: bool = True
    """User and assistant take turns, the user first."""
    strip_around_images: bool = False
    """White space on both sides of an image is dropped, whatever the tokenizer's added tokens say."""
    end_when_cut: bool = False
    """A conversation cut by `max_length` still finishes with `end`, in place of its last token."""
    from_tokenizer: bool = False
    """The tokenizer's own chat template writes the conversation (auto.py); nothing of the above applies."""
