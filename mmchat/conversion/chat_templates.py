"""Chat templates of other programs: the template here that writes the same, and the Jinja that is exported."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from mmchat.auto import MMChatProcessor
from mmchat.conversation import SlotTokens, to_jinja
from mmchat.conversation.bounded_jinja import check_cost
from mmchat.conversation.safe_tokenizer import safe_tokenizer_for
from mmchat.conversation.templates import TEMPLATES
from mmchat.conversation.tokenizer_jinja import quote
from mmchat.errors import UserError
from mmchat.files import read_json_object

_QUESTION = "What is in the image?"
_TURNS = (("assistant", "A cat."), ("user", "Which colour?"))


@dataclass(frozen=True)
class FoundTemplate:
    """A template here, the system message of conversations that have none, and the slot tokens."""

    name: str
    system: str | None
    slots: SlotTokens


def matching_template(
    tokenizer: Any, slots: SlotTokens, jinja: str, image: str, turns: Sequence[int] = (1, 2, 3)
) -> tuple[str, str | None]:
    """The template and system message here that write the text of a foreign chat template.

    Compared are the prompts of a first and of a second question, and a finished conversation, about one image. A line
    break that the foreign template itself writes after an image may be part of the text here.

    Args:
        tokenizer: The foreign tokenizer, fast, with the slot tokens.
        slots: The slot tokens of the foreign processor.
        jinja: The foreign chat template.
        image: What it writes for an image, which the foreign processor replaces by the slots.
        turns: Numbers of turns to compare. (1,) compares the prompt of a first question only.

    Returns:
        Name and system message, as `MMChatConfig` has them; "auto" if no other template writes this text.
    """
    foreign = [_write(tokenizer, jinja, count) for count in turns]
    expected = [text and _pieces(text, image) for text in foreign]
    for name, system in _candidates():
        try:
            candidate = to_jinja(name, slots, tokenizer, system)
        except UserError:  # it writes a token that this tokenizer lacks
            continue
        for line_break in ("", "\n"):
            written = [_write(tokenizer, candidate, count, line_break) for count in turns]
            if [text and _pieces(text, slots.group) for text in written] == expected:
                return name, system
    return "auto", None


def writes_alike(tokenizer: Any, template: str, jinja: str) -> bool:
    """Whether a template here writes the text of a foreign Jinja that reads contents as strings, without images.

    Args:
        tokenizer: The foreign tokenizer, fast.
        template: Name of the template here, without a system message.
        jinja: The foreign chat template.
    """
    try:
        ours = to_jinja(template, None, tokenizer)
    except UserError:  # it writes a token that this tokenizer lacks
        return False
    written = ([_write(tokenizer, one, count, strings=True) for count in (1, 2, 3)] for one in (ours, jinja))
    return len({tuple(texts) for texts in written}) == 1


def _candidates() -> Iterator[tuple[str, str | None]]:
    for name, template in TEMPLATES.items():
        if not template.from_tokenizer:
            yield name, None
            if template.default_system:
                yield name, ""


def _write(tokenizer: Any, jinja: str, turns: int, line_break: str = "", strings: bool = False) -> str | None:
    """The text of the first turns, without a BOS that the tokenizer adds; None if the template refuses them.

    The first has an image, unless contents are `strings`.
    """
    image = [{"type": "image"}]
    texts = [("user", line_break + _QUESTION), *_TURNS][:turns]
    messages: list[dict[str, Any]] = [
        {"role": role, "content": text if strings else image * (not number) + [{"type": "text", "text": text}]}
        for number, (role, text) in enumerate(texts)
    ]
    variables = {"add_generation_prompt": messages[-1]["role"] == "user", **tokenizer.special_tokens_map}
    try:
        check_cost(jinja, messages, variables)
    except UserError:  # it raises, for example because it adds the parts of a message to a string
        return None
    # Annotated as str, returns (texts, spans).
    rendered: Any = render_jinja_template([messages], chat_template=jinja, **variables)
    return rendered[0][0].removeprefix("".join(safe_tokenizer_for(tokenizer).prefix_tokens))


def read_chat_template(directory: Path, tokenizer: Any) -> str | None:
    """The Jinja of a directory's processor or else of its tokenizer; None if it has none.

    transformers 5 writes `chat_template.jinja`, older versions wrote `chat_template.json` for a processor.
    """
    jinja, values = directory / "chat_template.jinja", directory / "chat_template.json"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    if values.exists():
        return read_json_object(values).get("chat_template")
    return tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None


def find_template(tokenizer: Any, jinja: str | None, pad: str) -> FoundTemplate:
    """The template here for a Jinja that writes one token for an image.

    A published Jinja often leaves out what ends an answer, so that no template writes a second round alike. Then one
    that writes the first prompt alike is taken.

    Args:
        tokenizer: The tokenizer, with its added tokens.
        jinja: The Jinja. None is "auto".
        pad: The token.
    """
    prompt = None if jinja is None else _write(tokenizer, jinja, 1)
    if jinja is None or prompt is None:
        return FoundTemplate("auto", None, SlotTokens(pad))
    slots = _with_neighbours(prompt, tokenizer, pad)
    name, system = matching_template(tokenizer, slots, jinja, slots.group)
    if name == "auto":
        name, system = matching_template(tokenizer, slots, jinja, slots.group, turns=(1,))
    return FoundTemplate(name, system, slots)


def _with_neighbours(prompt: str, tokenizer: Any, pad: str) -> SlotTokens:
    """The slot tokens: the pad token, and the added tokens on both sides of it if there are."""
    added = [
        re.escape(token) for token in safe_tokenizer_for(tokenizer).added if token not in (pad, tokenizer.bos_token)
    ]
    token = f"({'|'.join(added)})" if added else "(?!)"
    found = re.search(f"{token}{re.escape(pad)}{token}", prompt)
    return SlotTokens(pad, found[1], found[2]) if found else SlotTokens(pad)


def _pieces(text: str, image: str) -> list[str]:
    """The text between images, without the prefix spaces that `plain_chat_template` writes."""
    return [piece.removeprefix(" ") for piece in text.split(image)]


def plain_chat_template(processor: MMChatProcessor) -> str:
    """The Jinja of an assistant, for programs that encode what it writes as one string.

    mmchat encodes the text before, between and after images separately, as LLaVA does, and SentencePiece-like
    tokenizers put a prefix space before each such text. If the tokenizer has it only at the beginning of a string
    (Llama 2 with `legacy=False`), the exported Jinja writes that space itself.
    """
    tokenizer, slots = processor.tokenizer, processor.slot_tokens
    jinja, safe = processor.chat_template, safe_tokenizer_for(tokenizer)
    if not _lacks_prefix_space(tokenizer, slots.pad):
        return jinja
    bos = "".join(safe.prefix_tokens)
    starts = ", ".join(map(quote, [" ", *safe.added]))
    return _WITH_PREFIX_SPACES.format(bos=quote(bos), image=quote(slots.group), starts=starts, jinja=jinja)


_WITH_PREFIX_SPACES = """\
{{%- set written -%}}
{jinja}
{{%- endset -%}}
{{{{- {bos} -}}}}
{{%- for piece in written[{bos} | length:].split({image}) -%}}
  {{%- if not loop.first -%}}{{{{- {image} -}}}}{{%- endif -%}}
  {{%- if piece and not piece.startswith(({starts})) -%}}{{{{- ' ' -}}}}{{%- endif -%}}
  {{{{- piece -}}}}
{{%- endfor -%}}
"""


def _lacks_prefix_space(tokenizer: Any, token: str) -> bool:
    """Whether a text after an added token is encoded differently than the same text alone."""
    alone, after = (tokenizer(text, add_special_tokens=False).input_ids for text in ("a", token + "a"))
    return alone != after[1:]
