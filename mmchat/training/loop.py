"""The loop: micro-batches in, optimizer steps out. It knows neither models nor files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import deepspeed
import torch

from mmchat.data.collate import Batch
from mmchat.data.records import Rejected
from mmchat.training.distributed import collectives
from mmchat.training.distributed.signals import exit_status
from mmchat.training.engine import mean_over_ranks
from mmchat.training.monitoring.flops import ModelFlops
from mmchat.training.monitoring.grad_norms import ModuleGradNorms
from mmchat.training.monitoring.metrics import peak_memory
from mmchat.training.monitoring.nan_guard import Incident, NanGuard
from mmchat.training.objectives.base import Objective


@dataclass
class StepResult:
    """One optimizer step, summed over micro-batches and ranks.

    loss: mean over the step's terms (supervised tokens, or pairs).
    grad_norm: before clipping; grad_norms: of each module of the table.
    lr: of the optimizer's first group.
    positions: tokens and padding. cut: tokens that `max_length` took away.
    operations: that the step needed, None where unknown.
    memory: the rank's that has used most, in bytes at its peak so far.
    rejected: samples of this step, on any rank, that could not be used.
    incident: what the guard found.
    stop: the exit status with which all ranks shall stop after this step, or 0.
    """

    loss: float
    grad_norm: float
    grad_norms: dict[str, float]
    lr: float
    terms: int
    tokens: int
    images: int
    positions: int
    cut: int
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
    cost: ModelFlops | None = None,
) -> StepResult:
    """Forward and backward over this rank's micro-batches, then one optimizer step if the guard lets it pass.

    The gradient is that of (sum of losses) / (number of terms over all micro-batches and ranks), so it does
    not depend on how the step's samples are split. DeepSpeed averages over ranks, hence the factor `ranks`.

    cost: what samples of this model cost; None where it is not known.
    """
    lr = engine.get_lr()[0]
    rejected = [item for batch in batches for item in batch.rejected]
    counts = [sum(map(objective.terms, batches)), sum(b.tokens for b in batches), len(rejected)]
    counts += [sum(b.positions for b in batches), sum(b.cut for b in batches)]
    counts += [sum(map(cost.of, batches)) if cost else 0]
    counts += [batch.images for batch in batches]
    engine.train()  # models are opened, and left by a validation, in evaluation mode
    summed = collectives.all_reduce(torch.tensor(counts, dtype=torch.int64)).tolist()
    terms, tokens, left_out, positions, cut, operations, *images = summed
    loss_sum = torch.zeros((), dtype=torch.float64)
    # ZeRO 3, and ZeRO 2 with offload, keep the last step's gradient of whatever a backward leaves out and add to it.
    run_everything = engine.zero_optimization_stage() >= 2
    anywhere = [images_here > 0 or run_everything for images_here in images]
    losses = objective.losses(engine, batches, anywhere, engine.device)
    for number in range(1, len(batches) + 1):
        last = number == len(batches)
        engine.set_gradient_accumulation_boundary(last)
        loss = next(losses)
        engine.backward(loss * (collectives.ranks() / max(1, terms)), scale_wrt_gas=False)
        loss_sum += loss.detach().double().cpu()
        if last:
            mean_over_ranks(engine)
            # The optimizer's turn is next: the guard must know the loss by then; signals and memory ride along.
            sums = torch.tensor([loss_sum.item(), *stop_flags(), *_memory_of_ranks()], dtype=torch.float64)
            total, interrupted, ended, *memory = collectives.all_reduce(sums).tolist()
            guard.begin(total / max(1, terms))
        engine.step()
    grad_norm = float(engine.get_global_grad_norm())
    if not engine.was_step_applied():
        # Under ZeRO DeepSpeed itself leaves out a step whose gradient is not finite, and its schedule stands still.
        guard.passes(grad_norm)
        engine.lr_scheduler.step()
    incident = guard.end(grad_norm)
    rejected = collectives.all_gather(rejected) if left_out else []
    return StepResult(
        loss=total / max(1, terms),
        grad_norm=grad_norm,
        grad_norms=norms.finish(grad_norm),
        lr=lr,
        terms=terms,
        tokens=tokens,
        images=sum(images),
        positions=positions,
        cut=cut,
        operations=operations if cost else None,
        memory=int(max(memory)),
        rejected=rejected,
        incident=incident,
        stop=exit_status([interrupted, ended]),
    )


def _memory_of_ranks() -> list[int]:
    """This rank's peak in its own place, so that a sum over ranks shows every rank's."""
    places = [0] * collectives.ranks()
    places[collectives.rank()] = peak_memory()
    return places


@torch.no_grad()
def validate(
    engine: deepspeed.DeepSpeedEngine, objective: Objective, stretches: Iterator[list[Batch]]
) -> tuple[dict[str, float], list[Rejected]]:
    """Mean loss per term over a validation set, and top-1 where answers can be right, as they stand in metrics.jsonl;
    and its samples, on any rank, that could not be used.

    stretches: micro-batches of as many samples as a step has, of which every rank holds equally many. What an objective
    compares, it compares within a stretch, as in a step.
    """
    engine.eval()
    rejected: list[Rejected] = []
    sums = torch.zeros(4, dtype=torch.float64)
    for batches in stretches:
        losses = objective.losses(engine, batches, [True] * len(batches), engine.device)
        loss = sum(one.double().item() for one in losses)
        sums += torch.tensor([loss, sum(map(objective.terms, batches)), 0, 0], dtype=torch.float64)
        for batch in batches:
            sums[2:] += torch.tensor(objective.right(engine, batch, engine.device), dtype=torch.float64)
        rejected += [item for batch in batches for item in batch.rejected]
    loss, terms, right, answers = collectives.all_reduce(sums).tolist()
    figures = {"validation_loss": loss / max(1.0, terms)} | ({"validation_top1": right / answers} if answers else {})
    return figures, collectives.all_gather(rejected)
