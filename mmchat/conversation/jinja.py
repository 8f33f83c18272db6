"""A Template as the Jinja chat template that is saved beside the tokenizer and the processor.

It reads the chat dialect. Each image is written as one start, pad, end group, which the processor expands.
BOS is written out, as every chat template does, because apply_chat_template encodes without special tokens.
"""

import json
import re

from mmchat.conversation.encoding import codec_for
from mmchat.conversation.segments import DEFAULT_SLOTS, WHITE_SPACE, Control, SlotTokens, split_literal
from mmchat.conversation.templates import Template, get_template

_TEXT_MACRO = """\
{%- macro text(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part['type'] != 'text' -%}
        {{- raise_exception('only a user message may hold images, other messages only text parts') -}}
      {%- endif -%}
      {{- part['text'] -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""

# A template that strips white space around images cannot write as it goes: it has to take back what it wrote.
_STRIPPING_MACROS = """\
{%- set ns = namespace(out='', bare=false) -%}
{%- macro put(string) -%}
  {%- set string = string.lstrip(WHITE_SPACE) if ns.bare else string -%}
  {%- set ns.bare = ns.bare and not string -%}
  {%- set ns.out = ns.out + string -%}
{%- endmacro -%}
{%- macro put_image() -%}
  {%- set ns.out = ns.out.rstrip(WHITE_SPACE) + SLOTS -%}
  {%- set ns.bare = true -%}
{%- endmacro -%}
"""

_PLAIN_MACROS = """\
{%- macro put(string) -%}{{- string -}}{%- endmacro -%}
{%- macro put_image() -%}{{- SLOTS -}}{%- endmacro -%}
"""

_BODY = """\
{{- put(BOS) -}}
{%- set system = DEFAULT_SYSTEM -%}
{%- set turns = messages -%}
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set system = text(messages[0]['content']) -%}
  {%- set turns = messages[1:] -%}
{%- endif -%}
SYSTEM_BLOCK
CHECKS
{%- for message in turns -%}
  {%- if message['role'] == 'user' -%}
    {%- if not loop.first -%}{{- put(NEXT_USER) -}}{%- endif -%}
    {{- put(USER_BEFORE) -}}
    {%- if loop.first -%}{{- put(FIRST_USER_BLOCK) -}}{%- endif -%}
    {%- if message['content'] is string -%}
      {%- if KEEP_STRING -%}{{- put(message['content']) -}}{%- endif -%}
    {%- else -%}
      {%- set images = message['content'] | selectattr('type', 'equalto', 'image') | list -%}
      {%- for part in message['content'] -%}
        {%- if part['type'] == 'image' -%}
          {{- put_image() -}}
        {%- elif part['type'] != 'text' -%}
          {{- raise_exception('unknown content part ' ~ part['type'] ~ ', expected image or text') -}}
        {%- elif KEEP_PART -%}
          {{- put(part['text']) -}}
        {%- endif -%}
      {%- endfor -%}
    {%- endif -%}
    {{- put(USER_AFTER) -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- put(ASSISTANT_BEFORE) -}}{{- put(text(message['content'])) -}}{{- put(ASSISTANT_AFTER) -}}
  {%- else -%}
    {{- raise_exception('role ' ~ message['role'] ~ ' cannot stand here, expected user or assistant') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- put(HEADER) -}}{%- else -%}{{- put(END) -}}{%- endif -%}
"""

_ALTERNATING_CHECK = """\
{%- for message in turns -%}
  {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
    {{- raise_exception('user and assistant must take turns, the user first') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and turns and turns[-1]['role'] == 'assistant' -%}
  {{- raise_exception('a generation prompt must follow a user turn') -}}
{%- endif -%}
"""

_ONE_EXCHANGE_CHECK = """\
{%- if turns | length not in (1, 2) or turns[0]['content'] is string
    or not turns[0]['content'] | selectattr('type', 'equalto', 'image') | list -%}
  {{- raise_exception('this template takes one user turn with at least one image and its answer') -}}
{%- endif -%}
"""

_NO_SYSTEM_CHECK = """\
{%- if system -%}
  {{- raise_exception('this template has no place for a system message') -}}
{%- endif -%}
"""


def to_jinja(template: str | Template, slots: SlotTokens | None, tokenizer) -> str:
    """The chat template that writes what `render` encodes, with this tokenizer's BOS and EOS.

    `encode_prompt` of its text gives the ids of `render` with the same `add_generation_prompt`. What render
    refuses (order of turns, unknown roles and parts) it refuses with `raise_exception`.

    Raises:
        UserError: the tokenizer lacks a token that the template writes, or is a slow one.
    """
    if isinstance(template, str):
        template = get_template(template)
    slots = slots or DEFAULT_SLOTS
    codec = codec_for(tokenizer)

    def literal(string: str) -> str:
        segments = split_literal(string, template.control)
        return _quote("".join(codec.content(s.token) if isinstance(s, Control) else s.text for s in segments))

    block, first_user_block = "", "''"
    if template.system:
        before, after = map(literal, template.system)
        first_user_block = f"({before} + system + {after} if system else '')"
        if not template.system_in_user:
            block, first_user_block = "{{- put(" + first_user_block + ") -}}", "''"
    keep = {"keep": "true", "drop": "false", "drop_beside_images": "not images"}[template.user_text]
    checks = [_ALTERNATING_CHECK] * template.alternating + [_ONE_EXCHANGE_CHECK] * template.one_exchange
    checks += [_NO_SYSTEM_CHECK] * (template.system is None)
    macros = _STRIPPING_MACROS if template.strip_around_images else _PLAIN_MACROS
    values = {
        "WHITE_SPACE": _quote(WHITE_SPACE),
        "SLOTS": _quote(slots.group),
        "BOS": _quote("".join(codec.prefix_tokens)),
        "DEFAULT_SYSTEM": _quote(template.default_system),
        "SYSTEM_BLOCK": block,
        "CHECKS": "\n".join(check.rstrip("\n") for check in checks),
        "NEXT_USER": literal(template.next_user),
        "USER_BEFORE": literal(template.user[0]),
        "FIRST_USER_BLOCK": first_user_block,
        "KEEP_STRING": "false" if template.user_text == "drop" else "true",
        "KEEP_PART": keep,
        "USER_AFTER": literal(template.user[1]),
        "ASSISTANT_BEFORE": literal(template.header + template.answer[0]),
        "ASSISTANT_AFTER": literal(template.answer[1] + template.after_answer),
        "HEADER": literal(template.header),
        "END": literal(template.end),
    }
    source = _TEXT_MACRO + macros + _BODY + ("{{- ns.out -}}\n" if template.strip_around_images else "")
    return _fill(source, values)


def _fill(source: str, values: dict[str, str]) -> str:
    """Every name of `values` by its value, in one pass: a value is never searched for names."""
    return re.sub("|".join(rf"\b{name}\b" for name in values), lambda match: values[match[0]], source)


def _quote(string: str) -> str:
    # Jinja reads the escapes of a string constant as Python does, and JSON's are among them.
    return json.dumps(string, ensure_ascii=False)
