"""One optimizer step: micro-batches in, weights changed. Nothing here knows models or files."""

from collections.abc import Callable
from dataclasses import astuple, dataclass, fields

import deepspeed
import torch

from mmchat.data.collate import Batch
from mmchat.data.records import Rejected
from mmchat.training.deepspeed_engine import average_gradients
from mmchat.training.distributed import collectives, process_group
from mmchat.training.distributed.signals import exit_status
from mmchat.training.monitoring.flops import ModelFlops
from mmchat.training.monitoring.grad_norms import ModuleGradNorms
from mmchat.training.monitoring.metrics import peak_memory
from mmchat.training.monitoring.nan_guard import Incident, NanGuard
from mmchat.training.objectives.base import Objective


@dataclass(frozen=True)
class StepCounts:
    """What a micro-batch holds, or several together.

    Args:
        terms: losses that the objective sums up (supervised tokens, or images).
        positions: tokens and padding.
        cut: tokens beyond `max_length`.
        rejected: samples that could not be used.
        operations: floating-point operations that the model needs; 0 if unknown.
    """

    terms: int = 0
    tokens: int = 0
    images: int = 0
    positions: int = 0
    cut: int = 0
    rejected: int = 0
    operations: int = 0

    @classmethod
    def of(cls, batch: Batch, objective: Objective, flops: ModelFlops | None) -> "StepCounts":
        return cls(
            terms=objective.terms(batch),
            tokens=batch.tokens,
            images=batch.images,
            positions=batch.positions,
            cut=batch.cut,
            rejected=len(batch.rejected),
            operations=flops.of(batch) if flops else 0,
        )

    def __add__(self, other: "StepCounts") -> "StepCounts":
        return StepCounts(*(one + another for one, another in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def over_ranks(cls, micro_batches: list["StepCounts"]) -> list["StepCounts"]:
        """The counts of each micro-batch, added up over ranks by one collective."""
        local = torch.tensor([astuple(counts) for counts in micro_batches], dtype=torch.int64)
        summed = collectives.all_reduce(local.reshape(len(micro_batches), len(fields(cls))))
        return [cls(*row) for row in summed.tolist()]


@dataclass
class StepResult:
    """One optimizer step, over all micro-batches and ranks.

    Args:
        loss: mean over the step's terms.
        grad_norm: before clipping.
        grad_norms: of each module of the trainability table.
        lr: of the optimizer's first parameter group.
        operations: floating-point operations that the step needs; None if unknown.
        memory: of the rank that has used most, in bytes at its peak so far.
        rejected: samples of this step, on any rank, that could not be used.
        incident: what the guard found.
        stop: the exit status with which all ranks must stop after this step, or 0.
    """

    loss: float
    grad_norm: float
    grad_norms: dict[str, float]
    lr: float
    counts: StepCounts
    operations: int | None
    memory: int
    rejected: list[Rejected]
    incident: Incident | None
    stop: int

    @property
    def taken(self) -> bool:
        return self.incident is None or self.incident.taken


def train_step(
    engine: deepspeed.DeepSpeedEngine,
    objective: Objective,
    batches: list[Batch],
    guard: NanGuard,
    norms: ModuleGradNorms,
    stop_flags: Callable[[], list[int]],
    flops: ModelFlops | None = None,
) -> StepResult:
    """Forward and backward over this rank's micro-batches, then one optimizer step if the guard lets it pass.

    The gradient is that of (sum of losses) / (number of terms over all micro-batches and ranks), so it does not depend
    on how the step's samples are split. DeepSpeed averages over ranks, hence the factor `ranks`.

    Args:
        stop_flags: this rank's flags of `distributed.signals`, read before the optimizer steps.
        flops: operations of a sample of this model; None if unknown.
    """
    lr = engine.get_lr()[0]
    engine.train()  # models are opened, and left by a validation, in evaluation mode
    micro_batches = StepCounts.over_ranks([StepCounts.of(batch, objective, flops) for batch in batches])
    counts = sum(micro_batches, StepCounts())
    # ZeRO 3, and ZeRO 2 with offload, keep the last step's gradient of what a backward leaves out, and add to it.
    run_everything = engine.zero_optimization_stage() >= 2
    images_on_any_rank = [of_one.images > 0 or run_everything for of_one in micro_batches]
    losses = objective.losses(engine, batches, images_on_any_rank, engine.device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
    for number in range(1, len(batches) + 1):
        last = number == len(batches)
        engine.set_gradient_accumulation_boundary(last)
        loss = next(losses)
        engine.backward(loss * (process_group.world_size() / max(1, counts.terms)), scale_wrt_gas=False)
        loss_sum += loss.detach().double()
        if last:
            average_gradients(engine)
            # The guard must know the loss before the optimizer steps. Signals and memory ride along. This is the only
            # place where a step waits for the device.
            sums = torch.tensor([loss_sum.item(), *stop_flags(), *_memory_of_ranks()], dtype=torch.float64)
            total, interrupted, ended, *memory = collectives.all_reduce(sums).tolist()
            guard.begin(total / max(1, counts.terms))
        engine.step()
    grad_norm = float(engine.get_global_grad_norm())
    if not engine.was_step_applied():
        # Under ZeRO DeepSpeed itself skips a step whose gradient is not finite, without advancing the schedule.
        guard.passes(grad_norm)
        engine.lr_scheduler.step()
    incident = guard.end(grad_norm)
    rejected = [item for batch in batches for item in batch.rejected]
    return StepResult(
        loss=total / max(1, counts.terms),
        grad_norm=grad_norm,
        grad_norms=norms.finish(grad_norm),
        lr=lr,
        counts=counts,
        operations=counts.operations if flops else None,
        memory=int(max(memory)),
        rejected=collectives.all_gather(rejected) if counts.rejected else [],
        incident=incident,
        stop=exit_status([interrupted, ended]),
    )


def _memory_of_ranks() -> list[int]:
    """This rank's peak at this rank's index, zeros elsewhere, so that a sum over ranks shows every rank's."""
    peaks = [0] * process_group.world_size()
    peaks[process_group.rank()] = peak_memory()
    return peaks
