"""Reasons why the configured run cannot finish, or would learn nothing; one line each."""

from dataclasses import dataclass
from typing import Any, Literal

from mmchat.planning.data_plan import SourcePlan
from mmchat.planning.memory import CUDA_CONTEXT, Memory
from mmchat.training.objectives.base import Objective

GIB = 1 << 30


@dataclass(frozen=True)
class Problem:
    """One reason; `kind` is for programs, `message` for people."""

    kind: Literal["slots", "unusable", "nothing_to_learn", "fits_no_row", "memory"]
    message: str


def image_exceeds(processor: Any, max_length: int) -> list[Problem]:
    """Whether an image alone exceeds `max_length` tokens.

    Args:
        processor: Of an assistant.
        max_length: Of the data.
    """
    slots = processor.slot_tokens
    group = processor.image_tokens * processor.image_processor.fewest_views + sum(
        token is not None for token in (slots.start, slots.end)
    )
    if group < max_length:
        return []
    message = (
        f"an image takes {group} tokens or more, which data.max_length {max_length} would cut: no sample with an image "
        "could be used; raise it"
    )
    return [Problem("slots", message)]


def unusable(source: SourcePlan, on_bad_sample: str) -> list[Problem]:
    """Unusable records, if a single one stops the run."""
    if not source.unusable or on_bad_sample == "skip":
        return []
    message = (
        f"{source.name}: {source.unusable:,} of {source.records:,} records cannot be used, and the first of them stops "
        f"the run ({source.first}); fix them, or set on_bad_sample: skip"
    )
    return [Problem("unusable", message)]


def nothing_to_learn(source: SourcePlan, objective: Objective) -> list[Problem]:
    """A source without loss terms."""
    if objective.terms(source):
        return []
    if source.unusable == source.records:
        return [Problem("nothing_to_learn", f"{source.name}: no record can be used; the first: {source.first}")]
    message = f"{source.name}: {objective.without_terms}, so nothing can be learned; `mmchat data show` shows why"
    return [Problem("nothing_to_learn", message)]


def does_not_fit(this: Memory, alternatives: dict[str, Memory], limit: int, device: str) -> list[Problem]:
    """Too little memory.

    Args:
        alternatives: config keys -> memory with them, the smallest change first.
        limit: bytes of the device.
    """
    if fits(this, limit):
        return []
    fitting = [keys for keys, memory in alternatives.items() if fits(memory, limit)]
    advice = (
        "neither ZeRO nor activation checkpointing is enough: use a smaller micro_batch_size or "
        "objective.packing.tokens, more ranks, offload, or LoRA"
    )
    if fitting:
        advice = f"it would fit with {fitting[0]}"
    message = (
        f"a rank needs {this.total / GIB:.1f} GiB and {CUDA_CONTEXT / GIB:g} GiB for CUDA itself, but {device} has "
        f"{limit / GIB:.1f} GiB; {advice}"
    )
    return [Problem("memory", message)]


def fits(memory: Memory, limit: int) -> bool:
    """Whether a rank fits into `limit` bytes."""
    return memory.total + CUDA_CONTEXT <= limit
