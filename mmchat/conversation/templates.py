"""The templates, as data: what is written around the turns of a conversation.

A literal is text that the template itself writes. In it `{bos}` and `{eos}` stand for the tokenizer's
own tokens, and every string of `control` is one token that the tokenizer must have; the rest is text.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from mmchat.errors import UserError


@dataclass(frozen=True)
class Template:
    """One conversation, in the order it is written:

        system[0] SYSTEM system[1]
        user[0] TEXT user[1]  header answer[0] TEXT answer[1] after_answer
        next_user user[0] TEXT user[1]  header ...
        end

    `answer` (both sides) and, after an assistant turn, `end` are supervised; nothing else is but the
    assistant's text. `header` is also what a generation prompt ends with.
    """

    name: str
    user: tuple[str, str]
    answer: tuple[str, str]
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
    control: tuple[str, ...] = ()
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


_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAVA_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
_MPT_SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
)
_VARY_QWEN_SYSTEM = "You should follow the instructions carefully and explain your answers in detail."

# ChatML as MPT and Vary write it: without a line break after the end of a turn.
_TIGHT_CHATML = {
    "system": ("<|im_start|>system\n", "<|im_end|>"),
    "user": ("<|im_start|>user\n", "<|im_end|>"),
    "header": "<|im_start|>assistant\n",
    "answer": ("", "<|im_end|>"),
    "control": ("<|im_start|>", "<|im_end|>"),
}

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        # LLaVA conversation.py conv_llava_plain and train.py preprocess_plain: image, caption, line break.
        Template("plain", user=("", ""), answer=("", "\n"), user_text="drop", one_exchange=True),
        # LLaVA conv_vicuna_v1. The space after "ASSISTANT:" is the answer's: the model writes it itself.
        Template(
            "vicuna_v1",
            system=("", " "),
            default_system=_VICUNA_SYSTEM,
            user=("USER: ", " "),
            header="ASSISTANT:",
            answer=(" ", "{eos}"),
        ),
        # LLaVA conv_llava_llama_2.
        Template(
            "llama_2",
            system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
            default_system=_LLAVA_LLAMA_2_SYSTEM,
            system_in_user=True,
            user=("[INST] ", " [/INST]"),
            answer=(" ", " {eos}"),
            next_user="{bos}",
        ),
        # LLaVA conv_mpt.
        Template("mpt", default_system=_MPT_SYSTEM, **_TIGHT_CHATML),
        # ChatML as Qwen2 and most others write it.
        Template(
            "chatml",
            system=("<|im_start|>system\n", "<|im_end|>\n"),
            default_system="You are a helpful assistant.",
            user=("<|im_start|>user\n", "<|im_end|>\n"),
            header="<|im_start|>assistant\n",
            answer=("", "<|im_end|>"),
            after_answer="\n",
            control=("<|im_start|>", "<|im_end|>"),
        ),
        # Vary caption_opt.py CaptionDataset: every value on its line, one end for all. A turn with an image
        # is only the image; its slow tokenizer strips white space around the slots; a cut sample has its
        # last token overwritten by </s>, supervised.
        Template(
            "vary_opt",
            user=("", "\n"),
            answer=("", "\n"),
            end="{eos}",
            user_text="drop_beside_images",
            alternating=False,
            strip_around_images=True,
            end_when_cut=True,
        ),
        # Vary conversation_dataset_qwen.py ConversationDataset, conversation.py conv_mpt.
        Template("vary_qwen", default_system=_VARY_QWEN_SYSTEM, **_TIGHT_CHATML),
    )
}


def get_template(name: str) -> Template:
    """The template of exactly this name; UserError with the nearest name if there is none."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    near = get_close_matches(str(name), TEMPLATES, n=1, cutoff=0)
    known = ", ".join(sorted(TEMPLATES))
    raise UserError(f"unknown conversation template {name!r}; did you mean {near[0]!r}? Known: {known}")
