"""The end of a run: its model written and read back, its curve, and where everything is."""

from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console

from mmchat.data.quarantine import Quarantine
from mmchat.files import read_json_lines
from mmchat.model.adapter import merge, save_adapter
from mmchat.training import distributed
from mmchat.training.config import RunConfig
from mmchat.training.metrics import plot_loss
from mmchat.training.objectives import Objective
from mmchat.training.opening import open_model
from mmchat.training.partitions import fill, whole_state
from mmchat.training.trainability import apply_rules


def finish(
    config: RunConfig, objective: Objective, adapter: PeftModel | None, quarantine: Quarantine, console: Console
) -> None:
    """Write the final model, draw the curve, say where everything is. All ranks call this; rank 0 does it."""
    if config.zero_stage == 3:
        state = whole_state(objective.model)
        if distributed.rank() == 0:
            objective, adapter = open_model(config)
            apply_rules(objective.model, config.trainable)  # an adapter is saved with what was trained in full
            fill(objective.model, state)
    if distributed.rank() == 0:
        if adapter is not None:
            # Before model/, which says that the run is finished.
            save_adapter(adapter, objective.processor, config.run_dir / "adapter", Path(config.model))
            _, difference = merge(adapter, objective.processor)
            console.print(f"adapter merged into the model; logits differ by at most {difference:.1e}")
        if config.save_precision == "bf16":
            objective.model.to(torch.bfloat16)
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
