"""Loss over held-out records, and accuracy if answers can be right."""

from collections.abc import Iterator

import deepspeed
import torch

from mmchat.data.collate import Batch
from mmchat.data.records import Rejected
from mmchat.training.distributed import collectives
from mmchat.training.objectives.base import Objective


@torch.no_grad()
def held_out_loss(
    engine: deepspeed.DeepSpeedEngine, objective: Objective, chunks: Iterator[list[Batch]]
) -> tuple[dict[str, float], list[Rejected]]:
    """Mean loss per term, and top-1 if answers can be right. All ranks call this.

    Args:
        chunks: micro-batches of `batch_size` samples each, the same number on every rank. An objective that compares
            samples compares those of a chunk, as it does those of a step.

    Returns:
        The figures by their names in metrics.jsonl, and the samples, on any rank, that could not be used.
    """
    engine.eval()
    rejected: list[Rejected] = []
    sums = torch.zeros(4, dtype=torch.float64)
    for batches in chunks:
        losses = objective.losses(engine, batches, [True] * len(batches), engine.device)
        loss = sum(one.double().item() for one in losses)
        sums += torch.tensor([loss, sum(map(objective.terms, batches)), 0, 0], dtype=torch.float64)
        for batch in batches:
            sums[2:] += torch.tensor(objective.count_correct(engine, batch, engine.device), dtype=torch.float64)
        rejected += [item for batch in batches for item in batch.rejected]
    loss, terms, correct, answers = collectives.all_reduce(sums).tolist()
    figures = {"validation_loss": loss / max(1.0, terms)} | ({"validation_top1": correct / answers} if answers else {})
    return figures, collectives.all_gather(rejected)
