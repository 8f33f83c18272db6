"""The template `auto`: the tokenizer's own Jinja chat template writes the conversation.

Labels come from the `{% generation %}` blocks of the Jinja. A Jinja without them is run twice per answer: the answer is
what the conversation up to it adds to its generation prompt. If it does not simply continue the prompt (some Jinja
templates rewrite earlier turns), labels are unknown and an error is raised.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from mmchat.conversation.codec import Codec, codec_for
from mmchat.conversation.messages import Turn, parse_messages
from mmchat.conversation.prompt import parse_prompt
from mmchat.conversation.segments import WHITE_SPACE, Image, Segment, SlotTokens, Spans
from mmchat.conversation.special_tokens import drop_marks, mark_tokens
from mmchat.errors import UserError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REMEDY = (
    "choose a named template that fits the model, or put {% generation %} ... {% endgeneration %} around the "
    "answers in the tokenizer's chat template"
)

# Put before the tokenizer's own Jinja: it replaces images by slot groups and joins content parts to one string, which
# every Jinja can read. It ends with a line break, which trim_blocks removes, so that the tokenizer's Jinja still starts
# at the beginning of a line.
_PRELUDE_END = "{#- The tokenizer's own chat template. #}\n"
_PRELUDE = """\
{%- set flat = namespace(messages=[], text='') -%}
{%- if SYSTEM and messages and messages[0]['role'] != 'system' -%}
  {%- set flat.messages = [{'role': 'system', 'content': SYSTEM}] -%}
{%- endif -%}
{%- for message in messages -%}
  {%- if message['tool_calls'] -%}
    {{- raise_exception('tool_calls is not written: put the call into the content as text') -}}
  {%- endif -%}
  {%- set flat.text = '' -%}
  {%- set content = message['content'] -%}
  {%- for part in ([{'type': 'text', 'text': content}] if content is string else content) -%}
    {%- if part['type'] == 'text' -%}
      {%- set flat.text = flat.text + part['text'] -%}
    {%- elif part['type'] == 'image' and message['role'] == 'user' -%}
      {%- set flat.text = flat.text + SLOTS -%}
    {%- else -%}
      {{- raise_exception('content part ' ~ part['type'] ~ ' in a message of the ' ~ message['role']) -}}
    {%- endif -%}
  {%- endfor -%}
  {%- set flat.messages = flat.messages + [{'role': message['role'], 'content': flat.text}] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""


def write_with_tokenizer_template(
    messages: Sequence[Mapping[str, Any]],
    tokenizer,
    slots: SlotTokens,
    system: str | None,
    add_generation_prompt: bool,
) -> list[Segment]:
    """Write a conversation as segments with the tokenizer's own chat template.

    Args:
        messages: As in `render`.
        tokenizer: A fast transformers tokenizer.
        slots: The slot tokens.
        system: System message of conversations that have none. None and "" keep the default of the Jinja, if any.
        add_generation_prompt: End with the generation prompt. Nothing is supervised then.

    Raises:
        UserError: There is no chat template, it refuses the conversation or leaves out an image, or it does not show
            where an answer begins and ends.
    """
    turns = parse_messages(messages)
    if drop_marks(system or "") and turns[0].role != "system":
        turns.insert(0, Turn("system", (system,)))
    codec = codec_for(tokenizer)
    writer = _Writer(tokenizer, [_message(turn, codec, slots) for turn in turns], len(turns) - len(messages))
    if add_generation_prompt:
        text, spans = writer.write(len(turns), add_generation_prompt=True), ()
    elif writer.has_generation_blocks:
        text, spans = _generation_spans(writer, turns)
    else:
        text, spans = _difference_spans(writer, turns, codec)
    segments = parse_prompt(text, codec, slots, sanitized=True, supervised=spans)
    _check_complete(writer, turns, text, segments)
    return segments


def extend_tokenizer_jinja(tokenizer, slots: SlotTokens, system: str | None) -> str:
    """The tokenizer's own chat template, extended to read content parts and `system`. Idempotent.

    Raises:
        UserError: The tokenizer has no chat template.
    """
    values = {"SLOTS": quote(slots.group), "SYSTEM": quote(mark_tokens(system or "", codec_for(tokenizer)))}
    prelude = re.sub("SLOTS|SYSTEM", lambda match: values[match[0]], _PRELUDE)
    return prelude + _PRELUDE_END + _own_jinja(tokenizer)


def quote(string: str) -> str:
    """A Jinja string constant. Jinja reads the escapes of Python, which include those of JSON."""
    return json.dumps(string, ensure_ascii=False)


def _own_jinja(tokenizer) -> str:
    try:
        jinja = tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(
            "template 'auto' is the tokenizer's own chat template, but this tokenizer has none (or several, none of "
            "them the default); choose a named template, or set tokenizer.chat_template"
        ) from error
    return jinja.rpartition(_PRELUDE_END)[2]  # the tokenizer of an assistant starts with our prelude


def _message(turn: Turn, codec: Codec, slots: SlotTokens) -> dict[str, str]:
    """A chat message whose content is one string, in which only slots are tokens."""
    return {"role": turn.role, "content": slots.group.join(mark_tokens(text, codec) for text in _texts(turn))}


def _texts(turn: Turn) -> list[str]:
    """The text between the images."""
    texts = [""]
    for part in turn.parts:
        if part is None:
            texts.append("")
        else:
            texts[-1] += part
    return texts


class _Writer:
    """Runs the tokenizer's Jinja on the first messages of one conversation."""

    def __init__(self, tokenizer, chat: list[dict[str, str]], added: int):
        """added: number of messages that were inserted at the beginning."""
        self.jinja = _own_jinja(tokenizer)
        self.tokens = tokenizer.special_tokens_map
        self.chat = chat
        self.added = added
        self.has_generation_blocks = bool(_GENERATION.search(self.jinja))

    def name(self, number: int) -> str:
        return f"message {number - self.added}"

    def write(self, count: int, add_generation_prompt: bool = False) -> str:
        return self._write(count, add_generation_prompt, False)[0]

    def write_tracked(self) -> tuple[str, Spans]:
        """The text of the conversation and the spans of its generation blocks."""
        return self._write(len(self.chat), False, True)

    def _write(self, count: int, add_generation_prompt: bool, track: bool) -> tuple[str, Spans]:
        # Imported here because it loads torch. transformers caches the compiled template.
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            (text,), spans = render_jinja_template(
                [self.chat[:count]],
                chat_template=self.jinja,
                return_assistant_tokens_mask=track,
                add_generation_prompt=add_generation_prompt,
                **self.tokens,
            )
        except TemplateError as error:
            where = f"the first {count} of {len(self.chat)} messages" if count < len(self.chat) else "the conversation"
            raise UserError(f"the tokenizer's chat template refuses {where}: {error}; {_REMEDY}") from error
        return text, spans[0] if track else ()


def _check_complete(writer: _Writer, turns: list[Turn], text: str, segments: list[Segment]) -> None:
    written = sum(isinstance(segment, Image) for segment in segments)
    expected = sum(turn.parts.count(None) for turn in turns)
    if written != expected:
        raise UserError(
            f"the messages hold {expected} image(s), the tokenizer's chat template writes {written} of them"
        )
    for number, turn in enumerate(turns):
        if turn.role == "user" and writer.chat[number]["content"].strip() not in text:
            raise UserError(
                "template 'auto': the tokenizer's chat template leaves out or changes the text of "
                f"{writer.name(number)}; choose a named template that fits the model"
            )


def _generation_spans(writer: _Writer, turns: list[Turn]) -> tuple[str, Spans]:
    """The text, and the generation blocks of the supervised turns."""
    text, blocks = writer.write_tracked()
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    if len(blocks) != len(answers):
        raise UserError(
            f"the tokenizer's chat template has {len(blocks)} generation blocks for {len(answers)} assistant turns, "
            "so blocks cannot be matched to turns; write each answer in one block, or choose a named template"
        )
    for number, (start, stop) in zip(answers, blocks, strict=True):
        _check_inside(writer, number, text[start:stop])
    return text, [block for number, block in zip(answers, blocks, strict=True) if turns[number].train]


def _difference_spans(writer: _Writer, turns: list[Turn], codec: Codec) -> tuple[str, Spans]:
    """The text, and what each supervised turn adds to its generation prompt."""
    text = writer.write(len(turns))
    return text, [_difference(writer, text, n, codec) for n, turn in enumerate(turns) if turn.train]


def _difference(writer: _Writer, text: str, number: int, codec: Codec) -> tuple[int, int]:
    prompt = writer.write(number, add_generation_prompt=True)
    answered = writer.write(number + 1)
    stripped = answered.rstrip(WHITE_SPACE)
    if not answered.startswith(prompt):
        raise _unsound(writer, number, "does not write the turn as a continuation of its generation prompt")
    if not text.startswith(stripped):
        raise _unsound(writer, number, "writes the turn differently when other turns follow it")
    ends_with_token = re.search(f"(?:{codec.pattern.pattern})$", stripped)
    stop = len(answered) if text.startswith(answered) and not ends_with_token else max(len(stripped), len(prompt))
    _check_inside(writer, number, answered[len(prompt) : stop])
    return len(prompt), stop


def _check_inside(writer: _Writer, number: int, span: str) -> None:
    if writer.chat[number]["content"].strip() not in span:
        raise _unsound(writer, number, "does not write the answer's text in the assistant's turn")


def _unsound(writer: _Writer, number: int, why: str) -> UserError:
    return UserError(
        f"template 'auto': the labels of {writer.name(number)} are unknown, because the tokenizer's chat template "
        f"{why}; {_REMEDY}"
    )
