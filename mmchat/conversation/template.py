"""`Template`, the schema of conversation templates. The templates are in templates.py."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Template:
    """A conversation format. It writes a conversation in this order:

        start  system[0] SYSTEM system[1]
        user[0] TEXT user[1]  header answer[0] TEXT answer[1] after_answer
        next_user user[0] TEXT user[1]  header ...
        end

    Tool messages are written as `tools[0]  tool[0] TEXT tool[1]  tool[0] TEXT tool[1] ...  tools[1]  header ...`.

    A literal is text that the template itself writes. In a literal, `{bos}` and `{eos}` are replaced by the tokenizer's
    own tokens, and every spelling of an added token of the tokenizer is that token, as in plain tokenization
    ("[INST]" is a token for Mistral v0.3 and text for v0.2).

    Supervised are the assistant's text, `answer` (both sides) and, after an assistant turn, `end`. A generation prompt
    ends with `header`.
    """

    name: str
    start: str = ""
    """Before everything, the system message too."""
    user: tuple[str, str] = ("", "")
    answer: tuple[str, str] = ("", "")
    header: str = ""
    after_answer: str = ""
    next_user: str = ""
    """Written before every user turn except the first."""
    end: str = ""
    system: tuple[str, str] | None = None
    """Around the system message. None: the template has no system message. An empty message writes nothing."""
    default_system: str = ""
    system_in_user: bool = False
    """The system block is inside the first user turn, after `user[0]`."""
    tool: tuple[str, str] | None = None
    """Around each tool message. None: the template has no tool messages."""
    tools: tuple[str, str] = ("", "")
    """Around a run of consecutive tool messages."""
    control: tuple[str, ...] = ()
    """Added tokens that the tokenizer must have."""
    user_text: Literal["keep", "drop", "drop_beside_images"] = "keep"
    """Whether the user's text is written. Pretraining templates keep only the images."""
    one_exchange: bool = False
    """The conversation is one user turn with at least one image, and its answer."""
    alternating: bool = True
    """User and assistant alternate, the user first."""
    strip_around_images: bool = False
    """White space around an image is dropped, even if the tokenizer's added tokens do not strip it."""
    strip_after_images: bool = False
    """White space after an image is dropped, but not before it, where the template may write a line break."""
    end_when_cut: bool = False
    """A conversation cut at `max_length` still ends with `end`, which replaces the last tokens."""
    from_tokenizer: bool = False
    """The tokenizer's own chat template writes the conversation (tokenizer_template.py). No other field applies."""
