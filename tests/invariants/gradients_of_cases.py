"""Started by the launcher, not by pytest: the gradients that our loop computes, case after case, in one set of ranks.

    gradients_of_cases.py CONFIG CASES OUT

CASES is a JSON object, name -> changed keys of the run config. For each, OUT/name.safetensors gets every parameter's
whole gradient before each step, as `step/parameter`.
"""

import json
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_grad
from safetensors.torch import save_file

from mmchat.data.quarantine import Quarantine
from mmchat.settings import load_settings
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from mmchat.training.dataloader import TrainingDataLoader
from mmchat.training.deepspeed_engine import build_engine
from mmchat.training.distributed import process_group
from mmchat.training.monitoring.grad_norms import ModuleGradNorms
from mmchat.training.monitoring.nan_guard import NanGuard
from mmchat.training.train_step import train_step


class Recorder(NanGuard):
    """Looks at the gradients where a guard does: after the last backward, before the optimizer."""

    def __init__(self, config: RunConfig, model: torch.nn.Module) -> None:
        super().__init__(config.monitoring.stability)
        self.sharded, self.model = config.distributed.zero_stage > 0, model
        self.found: dict[str, torch.Tensor] = {}
        self.step = 0

    def begin(self, loss: float) -> None:
        super().begin(loss)
        self.step += 1
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                gradient = safe_get_full_grad(parameter) if self.sharded else parameter.grad
                self.found[f"{self.step}/{name}"] = gradient.detach().float().cpu().clone()


def record(config: RunConfig, out: Path) -> None:
    opened = build_model(config, sharded=config.distributed.zero_stage == 3)
    objective, groups = opened.objective, opened.groups
    dataloader = TrainingDataLoader(config, objective, Quarantine(out.with_suffix(".jsonl"), "stop", writes=False))
    norms, recorder = (
        ModuleGradNorms(groups, sharded=config.distributed.zero_stage > 0),
        Recorder(config, objective.model),
    )
    engine = build_engine(
        objective.model, groups, config, dataloader.total, process_group.world_size(), recorder, norms
    )
    for _, batches in dataloader.steps(0):
        result = train_step(engine, objective, batches, recorder, norms, lambda: [0, 0])
        for name, norm in result.grad_norms.items():
            recorder.found[f"{recorder.step}/norm of {name}"] = torch.tensor(norm)
    if process_group.rank() == 0:
        save_file(recorder.found, out)
    engine.destroy()


if __name__ == "__main__":
    path, cases, out = map(Path, (word for word in sys.argv[1:] if not word.startswith("--local_rank")))
    process_group.start()
    for name, changes in json.loads(cases.read_text()).items():
        words = [word for key, value in changes.items() for word in (f"--{key}", json.dumps(value))]
        record(load_settings(RunConfig, path, words), out / f"{name}.safetensors")
    process_group.stop()
