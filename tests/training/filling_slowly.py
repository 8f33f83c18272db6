"""Started by a test that kills it: fills the feature cache of a run, a few images at a time and slowly.

filling_slowly.py CONFIG
"""

import sys
import time
from pathlib import Path

from rich.console import Console

from mmchat.data.quarantine import Quarantine
from mmchat.settings import load_settings
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from mmchat.training.dataloader import TrainingDataLoader
from mmchat.training.distributed.signals import StopSignals
from mmchat.training.feature_extraction.fill_cache import fill_feature_cache
from mmchat.training.feature_extraction.passes import DistributedPass

config = load_settings(RunConfig, Path(sys.argv[1]), [])
objective = build_model(config).objective
quarantine = Quarantine(config.run_dir / "quarantine.jsonl", "stop")
dataloader = TrainingDataLoader(config, objective, quarantine)
objective.model.towers[0].register_forward_pre_hook(lambda *_: time.sleep(0.3))
fill_feature_cache(
    config.objective.feature_cache,
    config.precision,
    objective,
    dataloader.samples(),
    DistributedPass(config.workers, quarantine, StopSignals()),
    Console(stderr=True),
    shard_bytes=1,
)
