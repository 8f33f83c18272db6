"""The plan of a run: data, steps, memory, cost and problems, for every kind of objective."""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from mmchat.constants import IGNORE_INDEX
from mmchat.data.collate import Batch, Collator
from mmchat.data.lengths import LengthIndex
from mmchat.data.mixture import Mixture, open_mixture
from mmchat.data.packing import PackingConfig
from mmchat.data.quarantine import Quarantine
from mmchat.data.samples import EncodedSample, Sample
from mmchat.errors import SharedError, UserError
from mmchat.planning.activations import Activations, measure_activations
from mmchat.planning.cost import CachePlan, Cost, achieved_flops, plan_cost, plan_feature_cache
from mmchat.planning.data_plan import SourcePlan, plan_sources
from mmchat.planning.fake_model import FakeModel, open_fake_model
from mmchat.planning.memory import Memory, plan_memory
from mmchat.planning.problems import Problem, does_not_fit, image_exceeds, nothing_to_learn, unusable
from mmchat.planning.steps import (
    PlannedMicroBatch,
    StepRow,
    StepsPlan,
    largest_micro_batches,
    plan_micro_batches,
    step_rows,
    steps_to_plan,
    summarise_steps,
)
from mmchat.training.config import Part, Recomputed, RunConfig, ZeroStage
from mmchat.training.dataloader import batch_order, total_steps
from mmchat.training.micro_batches import step_splitter
from mmchat.training.monitoring.flops import model_flops
from mmchat.training.monitoring.gpus import Gpu
from mmchat.training.objectives.base import Objective
from mmchat.training.optim.param_groups import ModuleGroup
from mmchat.training.preflight import check_planned_model
from mmchat.vision import AnyRes, SlotMap, TowerSpec


@dataclass(frozen=True)
class Hardware:
    """Hardware of the planned run.

    Attributes:
        memory: bytes of a rank's device, if it is not `gpu`'s.
        mfu: expected model FLOPs utilisation.
        price: of all ranks per hour.
    """

    ranks: int = 1
    gpu: Gpu | None = None
    memory: int | None = None
    mfu: float = 0.4
    price: float | None = None

    @property
    def limit(self) -> int | None:
        return self.memory or (self.gpu.memory if self.gpu else None)

    @property
    def name(self) -> str:
        return self.gpu.short if self.gpu and not self.memory else "the device"


@dataclass(frozen=True)
class FakeStep:
    """The largest micro-batch of a rank's step, and how many the step has."""

    batch: Batch
    micro_batches: int


@dataclass(frozen=True)
class LargestMicroBatch:
    """The planned micro-batch that needs most memory; `ids` of its records."""

    batch: PlannedMicroBatch
    ids: list[str]


@dataclass
class Plan:
    """A plan. What a problem prevents from being known is None or empty.

    Attributes:
        groups: the trainability table.
        processor: an assistant's; None for other objectives.
        total: steps of the run.
        steps: as configured, then packed instead of padded or the reverse.
        rows: of the planned steps.
        memory: by ZeRO stage, with activation checkpointing as configured.
        other: activation checkpointing that is not configured: all parts if none is, none if any is.
        other_memory: by ZeRO stage, with `other`.
    """

    config: RunConfig
    hardware: Hardware
    groups: list[ModuleGroup]
    mixture: Mixture
    processor: object | None
    sources: list[SourcePlan]
    total: int
    problems: list[Problem]
    steps: list[StepsPlan] = field(default_factory=list)
    rows: list[StepRow] = field(default_factory=list)
    largest: LargestMicroBatch | None = None
    memory: list[Memory] = field(default_factory=list)
    other: dict[Part, Recomputed] = field(default_factory=dict)
    other_memory: list[Memory] = field(default_factory=list)
    cost: Cost | None = None
    cache: CachePlan | None = None

    @property
    def configured_memory(self) -> Memory:
        """Memory at the configured ZeRO stage."""
        return next(one for one in self.memory if one.zero_stage == self.config.distributed.zero_stage)

    @property
    def reads_text(self) -> bool:
        """Whether samples have tokens, and not only an image."""
        return any(source.tokens > source.images for source in self.sources)


def make_plan(config: RunConfig, hardware: Hardware) -> Plan:
    """Plan a run without weights, GPUs or training steps.

    Raises:
        UserError: a mistake in the config or data that leaves nothing to plan.
    """
    check_planned_model(config)
    fake = open_fake_model(config)
    objective = fake.objective
    processor = objective.processor
    problems = image_exceeds(processor, config.data.max_length) if processor else []
    mixture = open_mixture(config.data, Quarantine(config.run_dir / "quarantine.jsonl", "skip", writes=False))
    sources, lengths = plan_sources(mixture, objective)
    for source in sources:
        problems += nothing_to_learn(source, objective) or unusable(source, config.on_bad_sample)
    order = batch_order(config, mixture)
    total = total_steps(config, order)
    plan = Plan(config, hardware, fake.groups, mixture, processor, sources, total, problems)
    if any(problem.kind == "slots" for problem in problems) or not lengths.tokens.any():
        return plan

    planned = steps_to_plan(total, config.overfit_one_batch)
    batches = None
    for variant in _packing_variants(config, objective):
        try:
            split = step_splitter(variant, mixture, objective, hardware.ranks)
        except SharedError as error:
            problems += [Problem("fits_no_row", str(error))] if variant is config else []
            continue
        except UserError:
            if variant is config:
                raise
            continue  # a batch that cannot be padded on this number of ranks may be packed
        of_variant = plan_micro_batches(split, variant.objective.packs, order, planned, lengths)
        plan.steps.append(summarise_steps(of_variant, variant.objective.packs, variant is config, str(split)))
        batches = of_variant if variant is config else batches
    if batches is None:
        return plan
    plan.rows = step_rows(batches, objective.terms)
    _plan_memory(plan, fake, batches, lengths)
    flops_per_second = achieved_flops(
        config.monitoring.peak_tflops, config.precision, hardware.gpu, hardware.ranks, hardware.mfu
    )
    flops = model_flops(objective.model, config.objective.feature_cache is None, objective.teacher)
    plan.cost = plan_cost(flops, batches, len(planned), total, flops_per_second, hardware.price)
    images, views = (
        sum(getattr(s, what) * s.per_epoch // max(1, s.records - s.unusable) for s in sources)
        for what in ("images", "views")
    )
    if flops:
        towers = objective.towers_to_cache()
        plan.cache = plan_feature_cache(towers, config.precision, mixture, images, views, flops_per_second)
    return plan


def _packing_variants(config: RunConfig, objective: Objective) -> list[RunConfig]:
    """The config, and the same run padded instead of packed or the reverse."""
    if config.objective.packing is not None:
        return [config, replace(config, objective=config.objective.with_packing(None))]
    if objective.packable:
        packed = config.objective.with_packing(PackingConfig())
        return [config, replace(config, objective=packed, micro_batch_size=None)]
    return [config]


def _plan_memory(plan: Plan, fake: FakeModel, batches: list[PlannedMicroBatch], lengths: LengthIndex) -> None:
    config = plan.config
    forwards = Counter((one.step, one.rank) for one in batches)
    candidates = [
        (one, FakeStep(fake_batch(one, lengths, fake.objective.collator), forwards[one.step, one.rank]))
        for one in largest_micro_batches(batches)
    ]
    if len(candidates) > 1:
        candidates.sort(key=lambda pair: _activations(plan, fake, pair[1], config.distributed.zero_stage).total)
    largest, step = candidates[-1]
    plan.largest = LargestMicroBatch(largest, [plan.mixture.find(number)[1].id for number in largest.samples])
    distributed = config.distributed
    plan.other = {} if distributed.activation_checkpointing else dict.fromkeys(config.objective.parts, "all")
    plan.memory = _by_stage(plan, config, step)
    other = replace(config, distributed=replace(distributed, activation_checkpointing=plan.other))
    plan.other_memory = _by_stage(plan, other, step)
    if plan.hardware.limit is not None:
        limit, device = plan.hardware.limit, plan.hardware.name
        plan.problems += does_not_fit(plan.configured_memory, alternatives(plan), limit, device)


def alternatives(plan: Plan) -> dict[str, Memory]:
    """Settings that need less memory: config keys -> memory with them, the smallest change first."""
    configured, found = plan.config.distributed.zero_stage, {}
    checkpointing = [f"distributed.activation_checkpointing: [{', '.join(plan.other)}]"] if plan.other else []
    for memories, keys in ((plan.memory, []), (plan.other_memory if plan.other else [], checkpointing)):
        for one in memories:
            stage = [f"distributed.zero_stage: {one.zero_stage}"] if one.zero_stage > configured else []
            if one.zero_stage > configured or (keys and one.zero_stage == configured):
                found[" and ".join([*keys, *stage])] = one
    return found


def _by_stage(plan: Plan, config: RunConfig, step: FakeStep) -> list[Memory]:
    """Memory at each ZeRO stage that the config allows. Stages 0 to 2 keep the same weights and activations."""
    ranks = plan.hardware.ranks
    found: list[Memory] = []
    for stages in _possible_stages(config):
        distributed = replace(config.distributed, zero_stage=stages[-1], offload="none")
        fake = open_fake_model(replace(config, distributed=distributed))
        nearest = min(max(config.distributed.zero_stage, stages[0]), stages[-1])
        activations = _activations(plan, fake, step, nearest)
        found += [plan_memory(config, fake.objective, fake.groups, stage, ranks, activations) for stage in stages]
    return found


def _possible_stages(config: RunConfig) -> tuple[tuple[ZeroStage, ...], ...]:
    """ZeRO stages that the config allows, those with the same activations together."""
    if config.optimizer.name != "adamw":
        return ((0,),)
    below_3 = config.objective.distillation or config.quantize or any(rule.dora for rule in config.trainable.values())
    return ((0, 1, 2),) if below_3 else ((0, 1, 2), (3,))


def _activations(plan: Plan, fake: FakeModel, step: FakeStep, stage: int) -> Activations:
    with fake.running():
        bf16 = plan.config.precision == "bf16"
        return measure_activations(fake.objective, step.batch, step.micro_batches, plan.hardware.ranks, bf16, stage)


def fake_batch(batch: PlannedMicroBatch, lengths: LengthIndex, collator: Collator) -> Batch:
    """A batch of the planned sizes from the run's own collator: slots first, supervised tokens last."""
    items = []
    slot = collator.pad_id if collator.slot_id is None else collator.slot_id
    for number in batch.samples:
        tokens, supervised, images, views, _, slots = (int(column[number]) for column in lengths.columns)
        ids = [slot] * slots + [collator.pad_id] * (tokens - slots)
        labels = [IGNORE_INDEX] * (tokens - supervised) + [collator.pad_id] * supervised
        counts = _even_parts(views, images)
        blank = [_blank_image(count, collator) for count in counts]
        grids = [(1, count) for count in counts] if collator.specs[0].native else None
        maps = _blank_slot_maps(slots, images, collator.specs[0])
        items.append(Sample(number, str(number), EncodedSample(ids, labels, blank, grids=grids, slot_maps=maps)))
    return collator(items)


def _even_parts(total: int, parts: int) -> list[int]:
    return [total // parts + (place < total % parts) for place in range(parts)]


def _blank_slot_maps(slots: int, images: int, spec: TowerSpec) -> list[SlotMap] | None:
    """Maps of a sample's slots. All have weights if any image's may have some."""
    tiling = spec.preprocessing.tiling
    if not images or not isinstance(tiling, AnyRes):
        return None
    counts = _even_parts(slots, images)
    if tiling.max_tiles is None:
        return [SlotMap(np.zeros(count, np.int64)) for count in counts]
    return [SlotMap(np.zeros((count, 4), np.int64), np.zeros((count, 4), np.float32)) for count in counts]


def _blank_image(views: int, collator: Collator) -> list[np.ndarray]:
    return [np.zeros((views, 3, spec.view_size, spec.view_size), np.uint8) for spec in collator.specs]
