"""`PromptTemplate`: a prompt with fields of the item's record, as in "Describe this photo of {title}"."""

import string
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from mmchat.errors import UserError
from mmchat.inference.jobs.items import Item, refuse


class PromptTemplate:
    """A text with `{field}`; `{{` and `}}` stand for braces.

    Args:
        text: The text.

    Raises:
        UserError: A brace is alone, or holds something else than a name.
    """

    def __init__(self, text: str) -> None:
        try:
            self._pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UserError(f"the prompt {text!r} is not a template: {error}; write {{{{ and }}}} for braces") from None
        self.fields = tuple(dict.fromkeys(name for _, name, _, _ in self._pieces if name is not None))
        plain = all(not spec and not how for _, _, spec, how in self._pieces)
        if not plain or not all(name and not set(name) & set("{}[].\"'") for name in self.fields):
            raise UserError(
                f"the prompt {text!r} must name fields as {{field}}, found {', '.join(map(repr, self.fields))}; "
                "write {{ and }} for braces"
            )

    def fill(self, values: dict[str, Any], where: str) -> str:
        """The prompt with these values.

        Raises:
            UserError: One is missing or empty. The message begins with `where`.
        """
        missing = [name for name in self.fields if values.get(name) is None]
        if missing:
            found = ", ".join(name for name, value in values.items() if value is not None) or "nothing"
            raise UserError(f"{where} has no {missing[0]!r}, which the prompt names; it has {found}")
        return "".join(text + ("" if name is None else str(values[name])) for text, name, _, _ in self._pieces)


def with_prompts(items: Iterable[Item], template: PromptTemplate, keep: tuple[str, ...] = ()) -> Iterator[Item]:
    """The items with their prompts, and with the fields that their lines repeat.

    A prompt can name `path` and the fields of an item's record. Of later items without such a field each is an error of
    its own.

    Raises:
        UserError: The first item lacks a field, so that the name is probably wrong.
    """
    for number, item in enumerate(items):
        values = {**item.fields, **item.key}
        try:
            prompt = template.fill(values, item.key["path"])
        except UserError as error:
            if number == 0:
                raise
            yield replace(item, open=partial(refuse, str(error)), fields={})
            continue
        kept = {name: values.get(name) for name in keep}
        yield replace(item, prompt=prompt, kept=kept, fields={})
