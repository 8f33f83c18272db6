"""Turns in the order that a template can write; what it cannot write is refused here (docs/guides/templates.md)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmchat.conversation.messages import Turn, is_data_dialect, parse_messages
from mmchat.conversation.template import Template
from mmchat.conversation.templates import TEMPLATES
from mmchat.errors import UserError

FOLLOWS = {"user": (None, "assistant"), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
"""What may stand in front of each role; None is the beginning."""


class Dialogue(NamedTuple):
    system: str | None
    """None: the messages hold no system message."""
    turns: list[Turn]
    """Of the user, the assistant and tools."""


def read_dialogue(messages: Sequence[Mapping[str, Any]], template: Template) -> Dialogue:
    """The system message and the turns of `messages`.

    Raises:
        UserError: malformed messages, a role that the template lacks, or turns that are out of order.
    """
    turns = parse_messages(messages)
    system = turns.pop(0).text if turns[0].role == "system" else None
    if is_data_dialect(messages) and template.alternating and turns and turns[0].role == "assistant":
        # As LLaVA and Vary do: an opening answer to no question cannot be learned from.
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
        able = ", ".join(name for name, known in TEMPLATES.items() if known.tool is not None)
        raise UserError(
            f"template {template.name!r} has no place for a tool's message; these have one: {able} "
            "(and auto, if the tokenizer's chat template writes it)"
        )


def _check_order(turns: list[Turn], template: Template) -> None:
    before = None
    for number, turn in enumerate(turns):
        if before not in FOLLOWS[turn.role]:
            due = " or ".join(f"{role}'s" for role, allowed in FOLLOWS.items() if before in allowed)
            raise UserError(
                f"turn {number} is the {turn.role}'s where the {due} is due: template {template.name!r} "
                "needs user and assistant to take turns, the user first, and tools to follow the assistant"
            )
        before = turn.role


def _check_one_exchange(turns: list[Turn], template: Template) -> None:
    if len(turns) > 2 or not turns or None not in turns[0].parts:
        images = turns[0].parts.count(None) if turns else 0
        raise UserError(
            f"template {template.name!r} takes one user turn with at least one image and its answer; "
            f"found {len(turns)} turns, {images} images in the first"
        )
