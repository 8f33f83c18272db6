"""Variant B: a training run of mmchat without its output files, built from the modules that `mmchat train` uses."""

from rich.console import Console

from mmchat.data.quarantine import Quarantine
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from mmchat.training.dataloader import TrainingDataLoader
from mmchat.training.deepspeed_engine import build_engine
from mmchat.training.distributed import process_group
from mmchat.training.distributed.signals import StopSignals
from mmchat.training.feature_extraction.fill_cache import fill_feature_cache, move_unused_towers
from mmchat.training.feature_extraction.passes import DistributedPass
from mmchat.training.monitoring.flops import model_flops
from mmchat.training.monitoring.grad_norms import ModuleGradNorms
from mmchat.training.monitoring.nan_guard import NanGuard
from mmchat.training.train_step import train_step
from side_by_side.recorder import Recorder


def train(config: RunConfig, steps: int, recorder: Recorder) -> None:
    opened = build_model(config)
    objective, groups = opened.objective, opened.groups
    quarantine = Quarantine(config.run_dir / "quarantine.jsonl", config.on_bad_sample, True)
    dataloader = TrainingDataLoader(config, objective, quarantine)
    if config.objective.feature_cache:
        fill_feature_cache(
            config.objective.feature_cache,
            config.precision,
            objective,
            dataloader.samples(),
            DistributedPass(config.workers, quarantine, StopSignals()),
            Console(stderr=True, soft_wrap=True),
        )
    guard, norms = (
        NanGuard(config.monitoring.stability),
        ModuleGradNorms(groups, sharded=config.distributed.zero_stage > 0),
    )
    engine = build_engine(objective.model, groups, config, dataloader.total, process_group.world_size(), guard, norms)
    move_unused_towers(objective, config.distributed.zero_stage, "cpu")
    cost = model_flops(objective.model, objective.features is None, objective.teacher)
    recorder.begin(objective.model)
    for step, batches in dataloader.steps(0):
        recorder.data_ready()
        result = train_step(engine, objective, batches, guard, norms, lambda: [0, 0], cost)
        recorder.step(
            loss=result.loss,
            grad_norm=result.grad_norm,
            grad_norms=result.grad_norms,
            tokens=result.counts.tokens,
            positions=result.counts.positions,
            operations=result.operations,
        )
        if step == steps:
            break
