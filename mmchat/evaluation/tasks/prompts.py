"""The text that a sample is asked with: that of the task, with the sample's own."""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from mmchat.inference.jobs.prompts import PromptTemplate


class TaskPrompt:
    """Lines with `{question}`, `{options}` and fields. A line that names something empty is left out.

    So one prompt serves questions with and without a hint.

    Args:
        text: The lines.

    Raises:
        UserError: As `PromptTemplate`.
    """

    def __init__(self, text: str) -> None:
        self._lines = [PromptTemplate(line) for line in text.strip("\n").split("\n")]
        self.fields = tuple(dict.fromkeys(name for line in self._lines for name in line.fields))

    def fill(self, question: str, options: Sequence[str], fields: Mapping[str, str]) -> str:
        """The text with these values."""
        values = {**fields, "question": question, "options": options_text(options)}
        kept = [line for line in self._lines if all(values.get(name) for name in line.fields)]
        return "\n".join(line.fill(dict(values), "the sample") for line in kept)


def options_text(options: Sequence[str]) -> str:
    """One line per option; "" if the question's own text lists them."""
    return "\n".join(lettered(options))


def lettered(options: Sequence[str]) -> list[str]:
    """As "A. cat" for each option; none if the question's own text lists them."""
    if not any(options):
        return []
    return [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False)]
