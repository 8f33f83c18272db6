"""Check the text of one record: order of turns, empty answers, control tokens, broken encodings."""

import re
from collections.abc import Iterable, Iterator, Sequence

import ftfy

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.conversation import Turn
from mmchat.conversation.turn_order import FOLLOWS
from mmchat.data.doctor.findings import Finding

WELL_KNOWN_TOKENS = (
    *("<s>", "</s>", "<unk>", "<pad>", "[PAD]", "<bos>", "<eos>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"),
    *(IMAGE_PLACEHOLDER, "<img>", "</img>", "<imgpad>", "<im_start>", "<im_end>", "<im_patch>", "<video>"),
    *("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|image|>", "<IMG_CONTEXT>"),
)
"""Control tokens of Llama, Qwen, Gemma, Phi, LLaVA, Vary and others. In plain text, some tools act on them."""

_SHOWN = 60
"""Characters of a text that a finding quotes."""


def token_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches `tokens` and the well-known ones."""
    # Longest first, as in the tokenizers library.
    longest_first = sorted({*tokens, *WELL_KNOWN_TOKENS}, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)))


def opening(turns: Sequence[Turn], alternates: bool) -> int:
    """Number of the first turn that is written: after the system message and, if the template alternates, after an
    unprompted answer."""
    first = 1 if turns[0].role == "system" else 0
    return first + (alternates and any(turn.unprompted for turn in turns[first : first + 1]))


def order_problem(turns: Sequence[Turn], first: int) -> str | None:
    """What an alternating template would refuse from turn `first` on (docs/guides/templates.md); None if nothing."""
    before = None
    for number, (role, *_) in enumerate(turns[first:], first):
        if role == "system":
            return f"turn {number} is a system message, which may only be the first"
        if before not in FOLLOWS[role]:
            return f"turn {number} is the {role}'s {f'after the {before}' if before else 'at the beginning'}"
        before = role
    return None


def answer_findings(turns: Sequence[Turn]) -> list[Finding]:
    """Empty answers, and records without a supervised answer."""
    answers = [turn for turn in turns if turn.role == "assistant"]
    supervised = [turn for turn in answers if turn.train]
    if not supervised:
        return [Finding("nothing_to_learn", f"none of the {len(answers)} answers may be trained on")]
    empty = sum(not turn.text.strip() for turn in supervised)
    if not empty:
        return []
    kind = "empty_answers" if empty == len(supervised) else "empty_answer"
    return [Finding(kind, f"{empty} of {len(supervised)} answers are empty")]


def spelling_findings(turns: Sequence[Turn], tokens: re.Pattern[str]) -> Iterator[Finding]:
    """Control tokens and encoding damage: at most one finding per kind, which quotes the first occurrence."""
    texts = [part for turn in turns for part in turn.parts if part]
    spelled = [match[0] for text in texts for match in tokens.finditer(text)]
    if spelled:
        named = ", ".join(dict.fromkeys(spelled))
        yield Finding("control_tokens", f"the text spells {named:.200}")
    non_ascii = [text for text in texts if not text.isascii()]
    for text in non_ascii:
        if (at := text.find("\ufffd")) >= 0:
            yield Finding("replacement_character", f"the text holds U+FFFD: {_around(text, at)}")
            break
    for text in non_ascii:
        if (fixed := ftfy.fix_encoding(text)) != text:
            at = next((n for n, (a, b) in enumerate(zip(text, fixed, strict=False)) if a != b), len(fixed))
            yield Finding("mojibake", f"the text reads {_around(text, at)}, probably for {_around(fixed, at)}")
            break


def _around(text: str, at: int) -> str:
    start = max(0, at - _SHOWN // 2)
    return repr(text[start : start + _SHOWN])
