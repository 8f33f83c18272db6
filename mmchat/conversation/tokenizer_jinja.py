"""Run and extend the Jinja chat template of a tokenizer, for the template `auto`."""

import json
import re
from typing import Any

from jinja2 import TemplateError

from mmchat.constants import IMAGE_BREAK
from mmchat.conversation.bounded_jinja import check_cost
from mmchat.conversation.safe_tokenizer import SafeTokenizer, safe_tokenizer_for
from mmchat.conversation.segments import SlotTokens, Spans
from mmchat.conversation.special_tokens import MARK_END, MARK_START, mark_tokens
from mmchat.errors import UserError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
REMEDY = (
    "choose a named template that fits the model, or put {% generation %} ... {% endgeneration %} around the "
    "answers in the tokenizer's chat template"
)

# What the chat dialect writes between two parts of a message (messages.py). Marks around typed tokens are no text.
_IMAGE_BREAK_MACRO = """\
{%- macro bare(text) -%}{{- text | replace(MARK_START, '') | replace(MARK_END, '') -}}{%- endmacro -%}
{%- macro image_break(before, part) -%}
  {%- if before and 'image' in (before['type'], part['type'])
      and (before['type'] == 'image' or bare(before['text']).rstrip() == bare(before['text']))
      and (part['type'] == 'image' or bare(part['text']).lstrip() == bare(part['text'])) -%}
    {{- BREAK -}}
  {%- endif -%}
{%- endmacro -%}
"""

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
  {%- set parts = [{'type': 'text', 'text': content}] if content is string else content -%}
  {%- for part in parts | rejectattr('text', 'equalto', '') -%}
    {%- set flat.text = flat.text + image_break(loop.previtem, part) -%}
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


def extend_tokenizer_jinja(tokenizer, slots: SlotTokens, system: str | None) -> str:
    """The tokenizer's own chat template, extended to read content parts and `system`. Idempotent.

    Raises:
        UserError: The tokenizer has no chat template.
    """
    safe = safe_tokenizer_for(tokenizer)
    values = {"SLOTS": quote(slots.group), "SYSTEM": quote(mark_tokens(system or "", safe))}
    return image_break_macro(safe) + fill_names(_PRELUDE, values) + _PRELUDE_END + _own_jinja(tokenizer)


def image_break_macro(safe: SafeTokenizer) -> str:
    """Jinja macro `image_break(before, part)`: the line break between two parts of a message, if there is one."""
    values = {"MARK_START": MARK_START, "MARK_END": MARK_END, "BREAK": mark_tokens(IMAGE_BREAK, safe)}
    return fill_names(_IMAGE_BREAK_MACRO, {name: quote(value) for name, value in values.items()})


def fill_names(source: str, values: dict[str, str]) -> str:
    """Replace every name of `values` by its value in one pass, so that values are not searched for names."""
    return re.sub("|".join(rf"\b{name}\b" for name in values), lambda match: values[match[0]], source)


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


class JinjaRunner:
    """Runs the tokenizer's Jinja on the first messages of one conversation."""

    def __init__(self, tokenizer, chat: list[dict[str, str]], added: int):
        """added: number of messages that were inserted at the beginning."""
        self.jinja = _own_jinja(tokenizer)
        self.tokens = tokenizer.special_tokens_map
        self.chat = chat
        self.added = added
        self.has_generation_blocks = bool(_GENERATION.search(self.jinja))

    def name(self, number: int) -> str:
        """A message as errors name it: by its number in the caller's list."""
        return f"message {number - self.added}"

    def write(self, count: int, add_generation_prompt: bool = False) -> str:
        """The text of the first `count` messages."""
        return self._write(count, add_generation_prompt, False)[0]

    def write_with_blocks(self) -> tuple[str, Spans]:
        """The text of the conversation and the spans of its generation blocks."""
        return self._write(len(self.chat), False, True)

    def _write(self, count: int, add_generation_prompt: bool, track: bool) -> tuple[str, Spans]:
        # Imported here because it loads torch. transformers caches the compiled template.
        from transformers.utils.chat_template_utils import render_jinja_template

        variables = {"add_generation_prompt": add_generation_prompt, **self.tokens}
        try:
            check_cost(self.jinja, self.chat[:count], variables)
            rendered: Any = render_jinja_template(  # annotated as str, returns (texts, spans of each)
                [self.chat[:count]],
                chat_template=self.jinja,
                return_assistant_tokens_mask=track,
                **variables,
            )
        except (TemplateError, UserError) as error:
            where = f"the first {count} of {len(self.chat)} messages" if count < len(self.chat) else "the conversation"
            raise UserError(f"the tokenizer's chat template refuses {where}: {error}; {REMEDY}") from error
        (text,), spans = rendered
        return text, spans[0] if track else ()
