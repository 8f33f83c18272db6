"""The plan of a run, made in the order in which a person reads it."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mmchat.constants import IGNORE_INDEX
from mmchat.data.collate import Batch, Collator
from mmchat.data.lengths import LengthIndex
from mmchat.data.mixture import Mixture, open_mixture
from mmchat.data.packing import PackingConfig
from mmchat.data.quarantine import Quarantine
from mmchat.data.samples import EncodedSample, Sample
from mmchat.errors import SharedError, UserError
from mmchat.model.attention import PACKABLE
from mmchat.planning.activations import Activations, measure
from mmchat.planning.cost import CachePlan, Cost, cache_of, cost_of, rate
from mmchat.planning.data_plan import SourcePlan, look_at_sources
from mmchat.planning.fake_model import Shapes, open_shapes
from mmchat.planning.memory import Memory, memory
from mmchat.planning.problems import Problem, does_not_fit, nothing_to_learn, slots_cannot_match, unusable
from mmchat.planning.steps import (
    MicroBatch,
    StepRow,
    StepsPlan,
    by_step,
    fullest,
    micro_batches,
    steps_to_look_at,
    summed_up,
)
from mmchat.training.config import Recomputed, RunConfig
from mmchat.training.dataloader import batch_order
from mmchat.training.micro_batches import step_splitter
from mmchat.training.monitoring.flops import model_flops
from mmchat.training.monitoring.peak_flops import Gpu
from mmchat.training.objectives.assistant import AssistantObjective
from mmchat.training.objectives.base import Objective
from mmchat.training.optim.param_groups import ModuleGroup


@dataclass(frozen=True)
class Hardware:
    """What the run is planned for. memory: bytes of a rank's device; mfu: share of its peak that is reached.

    price: of all ranks together for an hour.
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
class Worst:
    """The micro-batch that needs most memory of those looked at. ids: of its records."""

    batch: MicroBatch
    ids: list[str]


@dataclass
class Plan:
    """groups: the trainability table. steps: as configured, then the other way. rows: of the steps looked at.

    memory, other_memory: by ZeRO stage, with activation checkpointing as configured, and the other way (`other`).
    What a problem keeps from being known is None or empty.
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
    worst: Worst | None = None
    memory: list[Memory] = field(default_factory=list)
    other: dict[str, Recomputed] = field(default_factory=dict)
    other_memory: list[Memory] = field(default_factory=list)
    cost: Cost | None = None
    cache: CachePlan | None = None

    @property
    def this_memory(self) -> Memory:
        return next(one for one in self.memory if one.zero_stage == self.config.distributed.zero_stage)


def make_plan(config: RunConfig, hardware: Hardware) -> Plan:
    """Raises UserError for a mistake in the config or data that leaves nothing to plan."""
    if config.objective.kind == "simclr":
        raise UserError("a plan is made for objectives assistant and contrastive, found simclr")
    _check_model(config.model)
    if config.objective.kind == "classify":
        raise UserError("a plan is made for objectives assistant and contrastive, found classify")
    shapes = open_shapes(config)
    objective = shapes.objective
    assistant = isinstance(objective, AssistantObjective)
    processor = objective.processor if assistant else None
    problems = slots_cannot_match(objective.model, processor, config.data.max_length) if assistant else []
    mixture = open_mixture(config.data, Quarantine(config.run_dir / "quarantine.jsonl", "skip", writes=False))
    sources, lengths = look_at_sources(mixture, objective, config.data.max_length)
    for source in sources:
        problems += nothing_to_learn(source, not assistant) or unusable(source, config)
    order = batch_order(config, mixture)
    total = config.steps or order.steps_in_total
    plan = Plan(config, hardware, shapes.groups, mixture, processor, sources, total, problems)
    if any(problem.kind == "slots" for problem in problems) or not lengths.tokens.any():
        return plan

    looked_at = steps_to_look_at(total, config.overfit_one_batch)
    batches = None
    for way in _ways(config, objective):
        try:
            share = step_splitter(way, way.data, mixture, objective, hardware.ranks)
        except SharedError as error:
            problems += [Problem("fits_no_row", str(error))] if way is config else []
            continue
        except UserError:
            if way is config:
                raise
            continue  # a batch that cannot be padded on so many ranks may be packed
        found = micro_batches(share, way.objective.packs, order, looked_at, lengths)
        plan.steps.append(summed_up(found, way.objective.packs, way is config, str(share)))
        batches = found if way is config else batches
    if batches is None:
        return plan
    plan.rows = by_step(batches, not assistant)
    _plan_memory(plan, shapes, batches, lengths)
    flops_per_second = rate(config, hardware.gpu, hardware.ranks, hardware.mfu)
    counted = model_flops(objective.model, towers_run=config.objective.feature_cache is None)
    plan.cost = cost_of(counted, batches, len(looked_at), total, flops_per_second, hardware.price)
    images, views = (
        sum(getattr(s, what) * s.per_epoch // max(1, s.records - s.unusable) for s in sources)
        for what in ("images", "views")
    )
    plan.cache = cache_of(config, objective, mixture, images, views, flops_per_second) if counted else None
    return plan


def _check_model(model: str) -> None:
    if not Path(model).is_dir():
        raise UserError(
            f"model directory {model} does not exist. If an earlier stage will write it, name one of the same "
            "architecture with --model; `mmchat init --without-weights` makes it in seconds"
        )


def _ways(config: RunConfig, objective: Objective) -> list[RunConfig]:
    """As configured, and what it would be with or without packing."""
    goal = config.objective
    if goal.packing is not None:
        return [config, replace(config, objective=replace(goal, packing=None))]
    if isinstance(objective, AssistantObjective) and objective.model.config.text_config.model_type in PACKABLE:
        return [config, replace(config, objective=replace(goal, packing=PackingConfig()), micro_batch_size=None)]
    return [config]


def _plan_memory(plan: Plan, shapes: Shapes, batches: list[MicroBatch], lengths: LengthIndex) -> None:
    config = plan.config
    candidates = [(one, made_up(one, lengths, shapes.objective.collator)) for one in fullest(batches)]
    if len(candidates) > 1:
        candidates.sort(key=lambda pair: _activations(shapes, pair[1], config, config.distributed.zero_stage).total)
    worst, batch = candidates[-1]
    plan.worst = Worst(worst, [plan.mixture.find(number)[1].id for number in worst.samples])
    distributed = config.distributed
    plan.other = {} if distributed.activation_checkpointing else dict.fromkeys(config.objective.parts, "all")
    plan.memory = _by_stage(plan, config, batch)
    other = replace(config, distributed=replace(distributed, activation_checkpointing=plan.other))
    plan.other_memory = _by_stage(plan, other, batch)
    if plan.hardware.limit is not None:
        plan.problems += does_not_fit(plan.this_memory, instead(plan), plan.hardware.limit, plan.hardware.name)


def instead(plan: Plan) -> dict[str, Memory]:
    """What needs less, by how it is said in the config, the least change first."""
    now, found = plan.config.distributed.zero_stage, {}
    checkpointing = [f"distributed.activation_checkpointing: [{', '.join(plan.other)}]"] if plan.other else []
    for memories, said in ((plan.memory, []), (plan.other_memory if plan.other else [], checkpointing)):
        for one in memories:
            stage = [f"distributed.zero_stage: {one.zero_stage}"] if one.zero_stage > now else []
            if one.zero_stage > now or (said and one.zero_stage == now):
                found[" and ".join([*said, *stage])] = one
    return found


def _by_stage(plan: Plan, config: RunConfig, batch: Batch) -> list[Memory]:
    """ZeRO 3 holds other weights, and keeps other activations, than the stages below it, which are alike."""
    ranks, found = plan.hardware.ranks, []
    for stages in ((0, 1, 2), (3,)) if config.optimizer.name == "adamw" else ((0,),):
        distributed = replace(config.distributed, zero_stage=stages[-1], offload="none")
        shapes = open_shapes(replace(config, distributed=distributed))
        nearest = min(max(config.distributed.zero_stage, stages[0]), stages[-1])
        activations = _activations(shapes, batch, config, nearest)
        model, groups = shapes.objective.model, shapes.groups
        found += [memory(config, model, groups, stage, ranks, activations) for stage in stages]
    return found


def _activations(shapes: Shapes, batch: Batch, config: RunConfig, stage: int) -> Activations:
    with shapes.running():
        return measure(shapes.objective, batch, config.precision == "bf16", stage)


def made_up(batch: MicroBatch, lengths: LengthIndex, collator: Collator) -> Batch:
    """What the run's collator makes of samples of these sizes, slots first and supervised tokens last."""
    items = []
    for number in batch.samples:
        tokens, supervised, images, views, _ = (int(column[number]) for column in lengths.columns)
        slots = views * collator.tokens_per_view
        ids = [collator.slot_id] * slots + [collator.pad_id] * (tokens - slots)
        labels = [IGNORE_INDEX] * (tokens - supervised) + [collator.pad_id] * supervised
        counts = [views // images + (place < views % images) for place in range(images)]
        drawn = [_made_up_image(count, collator) for count in counts]
        grids = [(1, count) for count in counts] if collator.specs[0].native else None
        items.append(Sample(number, str(number), EncodedSample(ids, labels, drawn, grids=grids)))
    return collator(items)


def _made_up_image(views: int, collator: Collator) -> list[np.ndarray]:
    return [np.zeros((views, 3, spec.view_size, spec.view_size), np.uint8) for spec in collator.specs]
