"""The template `auto`: the tokenizer's own Jinja chat template writes the conversation.

Labels come from the `{% generation %}` blocks of the Jinja. A Jinja without them is run twice per answer: the answer is
what the conversation up to it adds to its generation prompt. If it does not simply continue the prompt (some Jinja
templates rewrite earlier turns), labels are unknown and an error is raised.
"""

import re
from collections.abc import Sequence

from mmchat.conversation.messages import Turn
from mmchat.conversation.prompt import parse_prompt
from mmchat.conversation.safe_tokenizer import SafeTokenizer, safe_tokenizer_for
from mmchat.conversation.segments import WHITE_SPACE, Image, Segment, SlotTokens, Spans
from mmchat.conversation.special_tokens import drop_marks, mark_tokens
from mmchat.conversation.tokenizer_jinja import REMEDY, JinjaRunner
from mmchat.errors import UserError, counted


def write_with_tokenizer_template(
    conversation: Sequence[Turn],
    tokenizer,
    slots: SlotTokens,
    system: str | None,
    add_generation_prompt: bool,
) -> list[Segment]:
    """Write a conversation as segments with the tokenizer's own chat template.

    Args:
        conversation: The turns.
        tokenizer: A fast transformers tokenizer.
        slots: The slot tokens.
        system: System message of conversations that have none. None and "" keep the default of the Jinja, if any.
        add_generation_prompt: End with the generation prompt. Nothing is supervised then.

    Raises:
        UserError: There is no chat template, it refuses the conversation or leaves out an image, or it does not show
            where an answer begins and ends.
    """
    turns = list(conversation)
    if drop_marks(system or "") and turns[0].role != "system":
        turns.insert(0, Turn("system", (system,)))
    safe = safe_tokenizer_for(tokenizer)
    runner = JinjaRunner(tokenizer, [_message(turn, safe, slots) for turn in turns], len(turns) - len(conversation))
    spans: Spans
    if add_generation_prompt:
        text, spans = runner.write(len(turns), add_generation_prompt=True), ()
    elif runner.has_generation_blocks:
        text, spans = _generation_spans(runner, turns)
    else:
        text, spans = _difference_spans(runner, turns, safe)
    segments = parse_prompt(text, safe, slots, sanitized=True, supervised=spans)
    _check_complete(runner, turns, text, segments)
    return segments


def _message(turn: Turn, safe: SafeTokenizer, slots: SlotTokens) -> dict[str, str]:
    """A chat message whose content is one string, in which only slots are tokens."""
    return {"role": turn.role, "content": slots.group.join(mark_tokens(text, safe) for text in _texts(turn))}


def _texts(turn: Turn) -> list[str]:
    """The text between the images."""
    texts = [""]
    for part in turn.parts:
        if part is None:
            texts.append("")
        else:
            texts[-1] += part
    return texts


def _check_complete(runner: JinjaRunner, turns: list[Turn], text: str, segments: list[Segment]) -> None:
    written = sum(isinstance(segment, Image) for segment in segments)
    expected = sum(turn.parts.count(None) for turn in turns)
    if written != expected:
        raise UserError(
            f"the messages hold {counted(expected, 'image')}, the tokenizer's chat template writes {written} of them"
        )
    for number, turn in enumerate(turns):
        if turn.role == "user" and runner.chat[number]["content"].strip() not in text:
            raise UserError(
                "template 'auto': the tokenizer's chat template leaves out or changes the text of "
                f"{runner.name(number)}; choose a named template that fits the model"
            )


def _generation_spans(runner: JinjaRunner, turns: list[Turn]) -> tuple[str, Spans]:
    """The text, and the generation blocks of the supervised turns."""
    text, blocks = runner.write_with_blocks()
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    if len(blocks) != len(answers):
        raise UserError(
            f"the tokenizer's chat template has {len(blocks)} generation blocks for {len(answers)} assistant turns, "
            "so blocks cannot be matched to turns; write each answer in one block, or choose a named template"
        )
    for number, (start, stop) in zip(answers, blocks, strict=True):
        _check_inside(runner, number, text[start:stop])
    return text, [block for number, block in zip(answers, blocks, strict=True) if turns[number].train]


def _difference_spans(runner: JinjaRunner, turns: list[Turn], safe: SafeTokenizer) -> tuple[str, Spans]:
    """The text, and what each supervised turn adds to its generation prompt."""
    text = runner.write(len(turns))
    return text, [_difference(runner, text, n, safe) for n, turn in enumerate(turns) if turn.train]


def _difference(runner: JinjaRunner, text: str, number: int, safe: SafeTokenizer) -> tuple[int, int]:
    prompt = runner.write(number, add_generation_prompt=True)
    answered = runner.write(number + 1)
    stripped = answered.rstrip(WHITE_SPACE)
    if not answered.startswith(prompt):
        raise _unsound(runner, number, "does not write the turn as a continuation of its generation prompt")
    if not text.startswith(stripped):
        raise _unsound(runner, number, "writes the turn differently when other turns follow it")
    ends_with_token = re.search(f"(?:{safe.pattern.pattern})$", stripped)
    stop = len(answered) if text.startswith(answered) and not ends_with_token else max(len(stripped), len(prompt))
    _check_inside(runner, number, answered[len(prompt) : stop])
    return len(prompt), stop


def _check_inside(runner: JinjaRunner, number: int, span: str) -> None:
    if runner.chat[number]["content"].strip() not in span:
        raise _unsound(runner, number, "does not write the answer's text in the assistant's turn")


def _unsound(runner: JinjaRunner, number: int, why: str) -> UserError:
    return UserError(
        f"template 'auto': the labels of {runner.name(number)} are unknown, because the tokenizer's chat template "
        f"{why}; {REMEDY}"
    )
