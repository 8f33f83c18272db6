"""Why a run as it is configured cannot go through, or would teach nothing. Each kind is one line for its user."""

from dataclasses import dataclass
from typing import Any, Literal

from mmchat.planning.data_plan import SourcePlan
from mmchat.planning.memory import CUDA_CONTEXT, Memory
from mmchat.training.config import RunConfig

GIB = 1 << 30


@dataclass(frozen=True)
class Problem:
    kind: Literal["slots", "unusable", "nothing_to_learn", "fits_no_row", "memory"]
    message: str


def slots_cannot_match(model: Any, processor: Any, max_length: int) -> list[Problem]:
    """model, processor: an assistant's."""
    found = []
    if processor.image_tokens != model.image_tokens:
        found.append(
            f"the processor gives a view of an image {processor.image_tokens} slots, but towers and projectors give "
            f"it {model.image_tokens} features: config.json and processor_config.json are not of one model; write the "
            "directory anew"
        )
    slots = processor.slot_tokens
    group = processor.image_tokens * processor.image_processor.fewest_views + sum(
        token is not None for token in (slots.start, slots.end)
    )
    if group >= max_length:
        found.append(
            f"an image takes {group} tokens or more, which data.max_length {max_length} would cut: no sample with a "
            "image could be used; raise it"
        )
    return [Problem("slots", message) for message in found]


def unusable(source: SourcePlan, config: RunConfig) -> list[Problem]:
    """Where bad samples stop a run, one is enough."""
    if not source.unusable or config.on_bad_sample == "skip":
        return []
    message = (
        f"{source.name}: {source.unusable:,} of {source.records:,} records cannot be used, and the first of them stops "
        f"the run ({source.first}); mend them, or set on_bad_sample: skip"
    )
    return [Problem("unusable", message)]


def nothing_to_learn(source: SourcePlan, contrastive: bool) -> list[Problem]:
    if source.images if contrastive else source.supervised:
        return []
    if source.unusable == source.records:
        return [Problem("nothing_to_learn", f"{source.name}: no record can be used; the first: {source.first}")]
    message = f"{source.name}: not one token is supervised, so nothing can be learned; `mmchat data show` shows why"
    return [Problem("nothing_to_learn", message)]


def does_not_fit(this: Memory, others: dict[str, Memory], limit: int, where: str) -> list[Problem]:
    """others: what could be configured instead, by how it would be said, the least change first."""
    if fits(this, limit):
        return []
    would = [how for how, memory in others.items() if fits(memory, limit)]
    advice = (
        "neither ZeRO nor checkpointing mends that alone: take a smaller micro_batch_size or packing.tokens, more "
        "ranks, offload, or LoRA"
    )
    if would:
        advice = f"it would fit with {would[0]}"
    message = (
        f"a rank needs {this.total / GIB:.1f} GiB and {CUDA_CONTEXT / GIB:g} GiB for CUDA itself, but {where} has "
        f"{limit / GIB:.1f} GiB; {advice}"
    )
    return [Problem("memory", message)]


def fits(memory: Memory, limit: int) -> bool:
    return memory.total + CUDA_CONTEXT <= limit
