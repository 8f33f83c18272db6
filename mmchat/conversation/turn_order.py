"""Check that a template can write a conversation's order of turns (docs/guides/templates.md)."""

from collections.abc import Sequence
from typing import NamedTuple

from mmchat.conversation.messages import Turn
from mmchat.conversation.template import Template
from mmchat.conversation.templates import TEMPLATES
from mmchat.errors import UserError

FOLLOWS = {"user": (None, "assistant"), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
"""The roles that may precede each role. None is the start of the conversation."""


class Dialogue(NamedTuple):
    system: str | None
    """The system message; None if there is none."""
    turns: list[Turn]
    """Turns of the user, the assistant and tools."""


def to_dialogue(conversation: Sequence[Turn], template: Template) -> Dialogue:
    """Separate the system message from the turns and check their order.

    An alternating template drops an unprompted opening answer, as LLaVA and Vary do: no question precedes it.

    Raises:
        UserError: A role that the template lacks, or turns out of order.
    """
    turns = list(conversation)
    system = turns.pop(0).text if turns[0].role == "system" else None
    if template.alternating and turns and turns[0].unprompted:
        turns.pop(0)
    _check_roles(turns, template)
    if template.alternating:
        _check_order(turns, template)
    if template.one_exchange:
        _check_one_exchange(turns, template)
    return Dialogue(system, turns)


def _check_roles(turns: list[Turn], template: Template) -> None:
    roles = {turn.role for turn in turns}
    if "system" in roles:
        raise UserError("a system message may only be the first message")
    if "tool" in roles and template.tool is None:
        with_tools = ", ".join(name for name, known in TEMPLATES.items() if known.tool is not None)
        raise UserError(
            f"template {template.name!r} has no place for a tool's message; these have one: {with_tools} "
            "(and auto, if the tokenizer's chat template writes tools)"
        )


def _check_order(turns: list[Turn], template: Template) -> None:
    before = None
    for number, turn in enumerate(turns):
        if before not in FOLLOWS[turn.role]:
            due = " or ".join(f"{role}'s" for role, allowed in FOLLOWS.items() if before in allowed)
            raise UserError(
                f"turn {number} is the {turn.role}'s, expected the {due}: in template {template.name!r} "
                "user and assistant alternate, the user first, and tool messages follow the assistant"
            )
        before = turn.role


def _check_one_exchange(turns: list[Turn], template: Template) -> None:
    if len(turns) > 2 or not turns or None not in turns[0].parts:
        images = turns[0].parts.count(None) if turns else 0
        raise UserError(
            f"template {template.name!r} takes one user turn with at least one image and its answer; "
            f"found {len(turns)} turns, {images} images in the first"
        )
