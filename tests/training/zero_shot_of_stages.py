"""Started by the launcher, not by pytest: `ZeroShotAccuracy` at every ZeRO stage, between two training steps.

zero_shot_of_stages.py CONFIG OUT
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoTokenizer

from mmchat.contrastive import load_clip
from mmchat.contrastive.losses import info_nce
from mmchat.files import write_json
from mmchat.settings import load_settings
from mmchat.training.config import RunConfig
from mmchat.training.deepspeed_engine import average_gradients, build_engine
from mmchat.training.distributed import process_group
from mmchat.training.monitoring.grad_norms import ModuleGradNorms
from mmchat.training.monitoring.nan_guard import NanGuard
from mmchat.training.optim.param_groups import apply_rules
from mmchat.training.validation.zero_shot_accuracy import ZeroShotAccuracy


def scores(config: RunConfig) -> list:
    """Before, between and after two steps: (scores, what could not be read)."""
    model = load_clip(config.model, dtype="float32")
    groups = apply_rules(model, config.trainable)
    zero_shot = ZeroShotAccuracy(
        config.objective.zero_shot, SimpleNamespace(model=model, tokenizer=AutoTokenizer.from_pretrained(config.model))
    )
    guard, norms = (
        NanGuard(config.monitoring.stability),
        ModuleGradNorms(groups, sharded=config.distributed.zero_stage > 0),
    )
    engine = build_engine(model, groups, config, 2, process_group.world_size(), guard, norms)
    found = [zero_shot(engine)]
    for step in range(2):
        engine.train()
        pixels = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(step))
        ids = torch.arange(3, 23).view(4, 5) + step
        loss = info_nce(*engine(pixels, ids, torch.ones_like(ids))).mean()
        engine.backward(loss)
        average_gradients(engine)
        guard.begin(loss.item())
        engine.step()
        guard.end(float(engine.get_global_grad_norm()))
        norms.finish(1.0)
        found.append(zero_shot(engine))
    engine.destroy()
    return [[figures, sorted(item.where for item in rejected)] for figures, rejected in found]


if __name__ == "__main__":
    path, out = map(Path, (word for word in sys.argv[1:] if not word.startswith("--local_rank")))
    process_group.start()
    found = {
        stage: scores(load_settings(RunConfig, path, ["--distributed.zero_stage", str(stage)])) for stage in range(4)
    }
    if process_group.rank() == 0:
        write_json(out, found)
    process_group.stop()
