"""Started by the launcher, not by pytest: bytes of parameters, gradients and optimizer state that rank 0 really holds.

    memory_of_states.py CONFIG OUT

One step of a run in two micro-batches. Gradients are looked at while they are fullest: below ZeRO 2 when the first has
left them whole, above after the last. The optimizer's state is looked at after the step.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from mmchat.data.quarantine import Quarantine
from mmchat.settings import load_settings
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from mmchat.training.dataloader import TrainingDataLoader
from mmchat.training.deepspeed_engine import build_engine
from mmchat.training.distributed import collectives, process_group
from mmchat.training.monitoring.grad_norms import ModuleGradNorms
from mmchat.training.monitoring.nan_guard import NanGuard


def bytes_of(tensors: Iterable[torch.Tensor | None]) -> int:
    """Memory that several tensors look at is counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


def gradients(engine) -> list[torch.Tensor | None]:
    if engine.zero_optimization_stage() == 3:
        return [engine.optimizer.grad_partitions_flat_buffer]
    if engine.zero_optimization_stage() == 2:
        return [gradient for group in engine.optimizer.averaged_gradients.values() for gradient in group]
    return [parameter.grad for parameter in engine.module.parameters()]


if __name__ == "__main__":
    path, out = map(Path, (word for word in sys.argv[1:] if not word.startswith("--local_rank")))
    process_group.start()
    config = load_settings(RunConfig, path, [])
    opened = build_model(config, sharded=config.distributed.zero_stage == 3)
    dataloader = TrainingDataLoader(
        config, opened.objective, Quarantine(config.run_dir / "quarantine.jsonl", "stop", writes=False)
    )
    guard, norms = (
        NanGuard(config.monitoring.stability),
        ModuleGradNorms(opened.groups, sharded=config.distributed.zero_stage > 0),
    )
    engine = build_engine(
        opened.objective.model, opened.groups, config, dataloader.total, process_group.world_size(), guard, norms
    )
    (_, (batch,)) = next(iter(dataloader.steps(0)))
    engine.train()
    guard.begin(1.0)
    found = {}
    for last in (False, True):
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(opened.objective.loss_sum(engine, batch, True) / 100, scale_wrt_gas=False)
        if last == (config.distributed.zero_stage >= 2):
            found["gradients"] = bytes_of(gradients(engine))
    engine.step()
    three = config.distributed.zero_stage == 3
    parameters = engine.module.parameters()
    found["parameters"] = bytes_of(p.ds_tensor if three else p.data for p in parameters)
    adamw = engine.optimizer.optimizer if config.distributed.zero_stage else engine.optimizer
    states = [value for state in adamw.state.values() for value in state.values() if value.numel() > 1]
    own = (
        [p for group in adamw.param_groups for p in group["params"]] if config.distributed.zero_stage in (1, 2) else []
    )
    own += engine.optimizer.fp32_partitioned_groups_flat if three else []
    found["optimizer"] = bytes_of([*states, *own])
    if process_group.rank() == 0:
        out.write_text(json.dumps(found))
    collectives.barrier()  # ZeRO 3 may be fetching parameters ahead, which both ranks have to end before either leaves
    process_group.stop()
