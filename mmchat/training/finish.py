"""The end of a run: its model written and read back, its curve, and where everything is."""

from pathlib import Path

import torch
from rich.console import Console

from mmchat.data.quarantine import Quarantine
from mmchat.files import read_json_lines
from mmchat.model.adapter import merge, save_adapter
from mmchat.training import distributed
from mmchat.training.config import RunConfig
from mmchat.training.metrics import plot_loss
from mmchat.training.opening import Opened, open_model
from mmchat.training.partitions import fill, whole_state


def finish(config: RunConfig, opened: Opened, quarantine: Quarantine, console: Console) -> None:
    """Write the final model, draw the curve, say where everything is. All ranks call this; rank 0 does it."""
    if config.zero_stage == 3:
        state = whole_state(opened.objective.model)
        if distributed.rank() == 0:
            opened = open_model(config)
            fill(opened.objective.model, state)
    if distributed.rank() == 0:
        objective, adapter = opened.objective, opened.adapter
        if adapter is not None:
            # Before model/, which says that the run is finished.
            save_adapter(adapter, objective.processor, config.run_dir / "adapter", Path(config.model), config.fit)
            _, difference = merge(adapter, objective.processor)
            console.print(f"adapter merged into the model; logits differ by at most {difference:.1e}")
        if config.save_precision == "bf16":
            # Not `.to`: that would round rotary frequencies as well, which a model that is opened has in fp32.
            for parameter in objective.model.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        objective.save(config.run_dir / "model")
        metrics = read_json_lines(config.run_dir / "metrics.jsonl")
        plot_loss(metrics, config.run_dir / "loss.png", config.run_dir.name)
        steps = [row for row in metrics if "loss" in row]
        skipped = sum("skipped" in row for row in metrics)
        minutes = sum(row["seconds"] for row in steps) / 60
        held_out = [row["validation_loss"] for row in metrics if "validation_loss" in row]
        console.print(
            f"done: {len(steps)} steps in {minutes:.1f} min"
            + (f", last loss {steps[-1]['loss']:.4f}" if steps else "")
            + (f", validation loss {held_out[-1]:.4f}" if held_out else "")
            + f", {len(quarantine)} samples left out"
            + (f", {skipped} steps skipped" if skipped else "")
        )
        console.print(f"  model    {config.run_dir / 'model'}\n  metrics  {config.run_dir / 'metrics.jsonl'}")
        if adapter is not None:
            console.print(f"  adapter  {config.run_dir / 'adapter'}")
        console.print(f"  curve    {config.run_dir / 'loss.png'}")
        if len(quarantine):
            console.print(f"  left out {quarantine.path}")
    distributed.barrier()
