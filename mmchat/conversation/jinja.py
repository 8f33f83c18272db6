"""Write a Template as a Jinja chat template, which is saved with the tokenizer and the processor.

It reads the chat dialect. Each image is written as one group of start, pad and end, which the processor expands. BOS is
written out, as in every chat template, because apply_chat_template encodes without special tokens.
"""

import json

from mmchat.conversation.apply_template import check_system
from mmchat.conversation.safe_tokenizer import safe_tokenizer_for
from mmchat.conversation.segments import DEFAULT_SLOTS, WHITE_SPACE, SlotTokens
from mmchat.conversation.special_tokens import mark_tokens
from mmchat.conversation.template import Template
from mmchat.conversation.templates import get_template
from mmchat.conversation.tokenizer_jinja import extend_tokenizer_jinja, fill_names, image_break_macro, quote
from mmchat.conversation.turn_order import FOLLOWS

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

# A template that strips white space around images cannot write directly: it must remove white space already written.
_STRIPPING_MACROS = """\
{%- set ns = namespace(out='', bare=false) -%}
{%- macro put(string) -%}
  {%- set string = string.lstrip(WHITE_SPACE) if ns.bare else string -%}
  {%- set ns.bare = ns.bare and not string -%}
  {%- set ns.out = ns.out + string -%}
{%- endmacro -%}
{%- macro put_image() -%}
  {%- set ns.out = (ns.out.rstrip(WHITE_SPACE) if STRIPS_BEFORE else ns.out) + SLOTS -%}
  {%- set ns.bare = true -%}
{%- endmacro -%}
"""

_PLAIN_MACROS = """\
{%- macro put(string) -%}{{- string -}}{%- endmacro -%}
{%- macro put_image() -%}{{- SLOTS -}}{%- endmacro -%}
"""

_BODY = """\
{{- put(BOS) -}}
{{- put(START) -}}
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
      {%- for part in message['content'] | rejectattr('text', 'equalto', '') -%}
        {%- if KEEP_PART -%}{{- put(image_break(loop.previtem, part)) -}}{%- endif -%}
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
  {%- elif message['role'] == 'tool' and HAS_TOOL -%}
    {%- if loop.first or loop.previtem['role'] != 'tool' -%}{{- put(TOOLS_BEFORE) -}}{%- endif -%}
    {{- put(TOOL_BEFORE) -}}{{- put(text(message['content'])) -}}{{- put(TOOL_AFTER) -}}
    {%- if loop.last or loop.nextitem['role'] != 'tool' -%}{{- put(TOOLS_AFTER) -}}{%- endif -%}
  {%- else -%}
    {{- raise_exception('role ' ~ message['role'] ~ ' is not allowed here, expected ROLES') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- put(HEADER) -}}{%- else -%}{{- put(END) -}}{%- endif -%}
"""

_ALTERNATING_CHECK = """\
{%- set order = namespace(before='start') -%}
{%- for message in turns -%}
  {%- if order.before not in FOLLOWS.get(message['role'], [order.before]) -%}
    {{- raise_exception('user and assistant must take turns, the user first, and tools follow the assistant') -}}
  {%- endif -%}
  {%- set order.before = message['role'] -%}
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

_FOLLOWS = json.dumps({role: ["start" if one is None else one for one in before] for role, before in FOLLOWS.items()})

_NO_SYSTEM_CHECK = """\
{%- if system -%}
  {{- raise_exception('this template has no place for a system message') -}}
{%- endif -%}
"""


def to_jinja(template: str | Template, slots: SlotTokens | None, tokenizer, system: str | None = None) -> str:
    """The Jinja chat template that writes what `render` encodes, with this tokenizer's BOS and EOS.

    `encode_prompt` of its output gives the ids of `render` with the same `system` and `add_generation_prompt`. What
    `render` refuses (order of turns, unknown roles and parts) it refuses with `raise_exception`.

    Args:
        template: A name in `TEMPLATES`, or a `Template`.
        slots: The slot tokens. None uses `DEFAULT_SLOTS`.
        tokenizer: A fast transformers tokenizer.
        system: System message of conversations that have none. None uses the template's own, "" none.

    Raises:
        UserError: The tokenizer is a slow one or lacks a token that the template writes, or the template has no system
            message.
    """
    if isinstance(template, str):
        template = get_template(template)
    slots = slots or DEFAULT_SLOTS
    safe = safe_tokenizer_for(tokenizer)
    if template.from_tokenizer:
        return extend_tokenizer_jinja(tokenizer, slots, system)
    check_system(system, template)
    for token in template.control:
        safe.require(token)

    def literal(string: str) -> str:
        return quote(safe.fill(string))

    block, first_user_block = "", "''"
    if template.system:
        before, after = map(literal, template.system)
        first_user_block = f"({before} + system + {after} if system else '')"
        if not template.system_in_user:
            block, first_user_block = "{{- put(" + first_user_block + ") -}}", "''"
    keep = {"keep": "true", "drop": "false", "drop_beside_images": "not images"}[template.user_text]
    checks = [_ALTERNATING_CHECK] * template.alternating + [_ONE_EXCHANGE_CHECK] * template.one_exchange
    checks += [_NO_SYSTEM_CHECK] * (template.system is None)
    tool_before, tool_after = template.tool or ("", "")
    values = {
        "WHITE_SPACE": quote(WHITE_SPACE),
        "STRIPS_BEFORE": "true" if template.strip_around_images else "false",
        "SLOTS": quote(slots.group),
        "BOS": quote("".join(safe.prefix_tokens)),
        "START": literal(template.start),
        "DEFAULT_SYSTEM": literal(template.default_system) if system is None else quote(mark_tokens(system, safe)),
        "SYSTEM_BLOCK": block,
        "CHECKS": fill_names("\n".join(check.rstrip("\n") for check in checks), {"FOLLOWS": _FOLLOWS}),
        "NEXT_USER": literal(template.next_user),
        "USER_BEFORE": literal(template.user[0]),
        "FIRST_USER_BLOCK": first_user_block,
        "KEEP_STRING": "false" if template.user_text == "drop" else "true",
        "KEEP_PART": keep,
        "USER_AFTER": literal(template.user[1]),
        "ASSISTANT_BEFORE": literal(template.header + template.answer[0]),
        "ASSISTANT_AFTER": literal(template.answer[1] + template.after_answer),
        "HAS_TOOL": "false" if template.tool is None else "true",
        "TOOLS_BEFORE": literal(template.tools[0]),
        "TOOL_BEFORE": literal(tool_before),
        "TOOL_AFTER": literal(tool_after),
        "TOOLS_AFTER": literal(template.tools[1]),
        "ROLES": "user or assistant" if template.tool is None else "user, assistant or tool",
        "HEADER": literal(template.header),
        "END": literal(template.end),
    }
    strips = template.strip_around_images or template.strip_after_images
    macros = _STRIPPING_MACROS if strips else _PLAIN_MACROS
    source = _TEXT_MACRO + macros + _BODY + ("{{- ns.out -}}\n" if strips else "")
    return image_break_macro(safe) + fill_names(source, values)
