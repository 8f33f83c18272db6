"""Replays one step of a run: its samples, their lengths and the loss of each."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mmchat.data.dataset import MixtureDataset
from mmchat.data.mixture import open_mixture
from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Rejected
from mmchat.errors import UserError
from mmchat.training.build_model import FORWARD_DTYPE
from mmchat.training.checkpoints.storage import (
    find_damage,
    list_checkpoints,
    read_manifest,
    step_of,
    weights_only_loading,
)
from mmchat.training.config import read_replayable
from mmchat.training.dataloader import batch_order, total_steps
from mmchat.training.deepspeed_internals import get_fp32_state_dict_from_zero_checkpoint
from mmchat.training.objectives.base import Objective
from mmchat.training.objectives.registry import objective_class
from mmchat.training.optim.lora import add_adapters
from mmchat.training.optim.nf4 import quantize_frozen


@dataclass
class ReplayedSample:
    """One sample of the step.

    Args:
        where: its place in the data.
        supervised: tokens with a loss.
        loss: mean over its supervised tokens.
        left_out: why the sample cannot be used; "" if it can.
    """

    id: str
    where: str
    tokens: int = 0
    supervised: int = 0
    images: int = 0
    loss: float = 0.0
    left_out: str = ""


@dataclass
class Replay:
    """A replayed step.

    Args:
        weights: where they come from, for the user.
    """

    weights: str
    samples: list[ReplayedSample]

    @property
    def loss(self) -> float:
        """Mean over all supervised tokens of the step, as a run logs it."""
        total = sum(sample.loss * sample.supervised for sample in self.samples)
        return total / max(1, sum(sample.supervised for sample in self.samples))


@torch.no_grad()
def replay(run_dir: Path, step: int) -> Replay:
    """Rebuild the batch of a step and run each of its samples alone, without dropout.

    The weights are those of the newest undamaged checkpoint before the step, or those that the run started from.

    Args:
        step: from 1.

    Raises:
        UserError: there is no such run or step, or its model or data have moved.
    """
    config = read_replayable(run_dir)
    mixture = open_mixture(config.data, Quarantine(run_dir / "quarantine.jsonl", config.on_bad_sample, writes=False))
    order = batch_order(config, mixture)
    total = total_steps(config, order)
    if not 1 <= step <= total:
        raise UserError(f"{run_dir} has the steps 1 to {total}, found {step}")
    objective = objective_class(config.objective.kind)(config)
    if config.quantize is not None:
        quantize_frozen(objective.model, config.trainable, FORWARD_DTYPE[config.precision])
    add_adapters(objective.model, config.trainable)  # updates are zero until a checkpoint is loaded
    objective.model.eval()
    weights = _load_nearest(objective.model, run_dir / "checkpoints", step, config.model)
    dataset = MixtureDataset(mixture, objective.encode, objective.collator.square, augment=objective.augment)
    planned = 0 if config.overfit_one_batch else step - 1
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        return Replay(weights, [_replay_sample(objective, dataset, number, planned) for number in order.step(planned)])


def _load_nearest(model: torch.nn.Module, checkpoints: Path, step: int, origin: str) -> str:
    for checkpoint in reversed([path for path in list_checkpoints(checkpoints) if step_of(path) < step]):
        if find_damage(checkpoint) is None:
            model.load_state_dict(_weights(checkpoint))
            done = step_of(checkpoint)
            return f"{checkpoint}" + ("" if done == step - 1 else f" (after step {done}; the run was at {step - 1})")
    return origin + ("" if step == 1 else f" (before the first step; the run was at {step - 1})")


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    with weights_only_loading():
        if read_manifest(checkpoint).zero_stage == 3:  # every rank saved its shard
            return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        return torch.load(checkpoint / "mp_rank_00_model_states.pt", map_location="cpu")["module"]


def _replay_sample(objective: Objective, dataset: MixtureDataset, number: int, step: int) -> ReplayedSample:
    where = dataset.mixture.find(number)[1].where
    sample = dataset[number, step]
    if isinstance(sample, Rejected):
        return ReplayedSample(str(sample.id), where, left_out=sample.reason)
    batch = objective.collator([sample])
    terms = objective.terms(batch)
    loss = objective.loss_sum(objective.model, batch, images_on_any_rank=batch.images > 0).item()
    return ReplayedSample(sample.id, where, batch.tokens, terms, batch.images, loss / max(1, terms))
