"""The chat template of a GGUF file: the model's own Jinja, with what llama.cpp's server needs around it.

llama.cpp does not show images to a chat template. It joins the parts of a message to text, with a marker for each image
(`<__media_..__>`, random for each server), and later puts the image's embeddings in the marker's place. So the file's
template makes parts of such text again, calls the model's own template, and writes the marker between the slot tokens
in place of the pad token.
"""

import re

from jinja2 import TemplateError

from mmchat.auto import MMChatProcessor
from mmchat.conversation.safe_tokenizer import safe_tokenizer_for
from mmchat.conversation.tokenizer_jinja import fill_names, quote
from mmchat.conversion.gguf.tokenizer import SPACE, kind_of

_PARTS = """\
{%- set media = namespace(marker='', messages=[], parts=[], found=false, prompt='', control=false) -%}
{%- for message in messages -%}
  {%- set media.parts = [] -%}
  {%- set media.found = false -%}
  {%- set content = message['content'] -%}
  {%- for part in ([{'type': 'text', 'text': content}] if content is string else (content or [])) -%}
    {%- if part['type'] == 'text' and '<__media_' in part['text'] -%}
      {%- set media.found = true -%}
      {%- set media.marker = '<__media_' ~ part['text'].split('<__media_')[1].split('__>')[0] ~ '__>' -%}
      {%- for text in part['text'].split(media.marker) -%}
        {%- if not loop.first -%}{%- set media.parts = media.parts + [{'type': 'image'}] -%}{%- endif -%}
        {%- if text -%}{%- set media.parts = media.parts + [{'type': 'text', 'text': text}] -%}{%- endif -%}
      {%- endfor -%}
    {%- else -%}
      {%- set media.parts = media.parts + [part] -%}
    {%- endif -%}
  {%- endfor -%}
  {%- set with_images = {'role': message['role'], 'content': media.parts} -%}
  {%- set media.messages = media.messages + [with_images if media.found else message] -%}
{%- endfor -%}
{%- set messages = media.messages -%}
{%- set prompt %}"""  # white space at the edges of the model's own template stays
_TEXTS = """\
{% endset -%}
{%- for piece in prompt.split(GROUP) -%}
  {%- set text = piece -%}
  {%- if not loop.first -%}{%- set media.prompt = media.prompt ~ START ~ media.marker ~ END -%}{%- endif -%}
"""
# Text at the start of a prompt and after an image is encoded on its own (`encode_segments`), and some tokenizers put a
# space before it, unless it starts with one or with a control token.
_FIRST_SPACE = """\
  {%- if loop.first and text.startswith(BOS) -%}
    {%- set media.prompt = BOS -%}
    {%- set text = text[BOS_LENGTH:] -%}
  {%- endif -%}
  {%- set media.control = not text or text.startswith(' ') or text.startswith(SPACE) -%}
  {%- for token in CONTROL -%}
    {%- if text.startswith(token) -%}{%- set media.control = true -%}{%- endif -%}
  {%- endfor -%}
  {%- if not media.control -%}{%- set text = ' ' ~ text -%}{%- endif -%}
"""
_APPEND = """\
  {%- set media.prompt = media.prompt ~ text -%}
{%- endfor -%}
"""
# llama.cpp puts a space before every text that follows a control token or an image; some tokenizers do so only before
# texts that do not start with one.
_SPACES_ONCE = """\
{%- for token in CONTROL + [media.marker] -%}
  {%- if token -%}{%- set media.prompt = media.prompt | replace(token ~ ' ', token) -%}{%- endif -%}
{%- endfor -%}
{%- if media.prompt.startswith(' ') -%}{%- set media.prompt = media.prompt[1:] -%}{%- endif -%}
"""
_END = "{{- media.prompt -}}\n"


def llamacpp_template(processor: MMChatProcessor, writes_slots: bool) -> str:
    """The Jinja chat template for llama.cpp.

    Args:
        processor: The assistant's processor.
        writes_slots: Whether the template writes the start and end tokens of an image. For some projector types
            llama.cpp does so itself.
    """
    slots, safe = processor.slot_tokens, safe_tokenizer_for(processor.tokenizer)
    start, end = (slots.start or "", slots.end or "") if writes_slots else ("", "")
    kind, bos = kind_of(processor.tokenizer), "".join(safe.prefix_tokens)
    values = {
        "GROUP": quote(slots.group),
        "START": quote(start),
        "END": quote(end),
        "BOS": quote(bos),
        "BOS_LENGTH": str(len(bos)),
        "SPACE": quote(SPACE),
        "CONTROL": "[" + ", ".join(map(quote, safe.added)) + "]",
    }
    after = _TEXTS + (_FIRST_SPACE if kind.first_space else "") + _APPEND + (_SPACES_ONCE if kind.spaces_once else "")
    return _PARTS + plain_escapes(processor.chat_template.removesuffix("\n") + fill_names(after + _END, values))


def template_refusals(processor: MMChatProcessor) -> list[str]:
    """Reasons why a chat template cannot be used: llama.cpp's server tries each with text alone when it starts."""
    turns = [{"role": role, "content": "Hello."} for role in ("user", "assistant", "user")]
    try:
        processor.tokenizer.apply_chat_template(
            turns, chat_template=processor.chat_template, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        return [
            f"its template {processor.template} refuses a conversation of text alone ({error}), which llama.cpp needs"
        ]
    return []


def plain_escapes(source: str) -> str:
    """Replace `\\u000b` and the like by the character, because llama.cpp's Jinja does not know them.

    Characters that would end a string constant keep their escapes.
    """

    def to_character(match: re.Match) -> str:
        character = chr(int(match[1], 16)) if match[1] else "\\"
        return match[0] if character in "\"'\\\n" else character

    return re.sub(r"\\(?:u([0-9a-fA-F]{4})|\\)", to_character, source)
