"""`Sample`: one question of a task, without its images."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    """A question with its right answers."""

    id: str
    """The same as in the data, so that answers of other programs find it."""
    question: str
    answers: tuple[str, ...]
    """The right ones; a letter if there are options. None where they are not published."""
    options: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    """Identifies its images: questions about the same ones are not independent."""
    row: int = 0
    """Its row in the data."""
    group: str = ""
    """The question that this one is an order of the options of; its own id if it is the only one."""
    turns: int = 0
    """Options that moved from the beginning of the list to its end."""
