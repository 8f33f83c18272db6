"""The end of a run: its model written and read back, its curves and report, and where everything is."""

from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console

from mmchat.data.quarantine import Quarantine
from mmchat.evaluation.report import write_report
from mmchat.evaluation.summary import summarise, summary_table
from mmchat.files import read_json_lines
from mmchat.model.adapter import merge, save_adapter
from mmchat.training import distributed
from mmchat.training.config import RunConfig
from mmchat.training.objectives import Objective
from mmchat.training.opening import open_model
from mmchat.training.partitions import fill, whole_state


def finish(
    config: RunConfig, objective: Objective, adapter: PeftModel | None, quarantine: Quarantine, console: Console
) -> None:
    """Write the final model, curves and report, say what came out and where it is. All ranks call this, rank 0 acts."""
    if config.zero_stage == 3:
        state = whole_state(objective.model)
        if distributed.rank() == 0:
            objective, adapter = open_model(config)
            fill(objective.model, state)
    if distributed.rank() == 0:
        from mmchat.training.curves import draw_curves  # loads matplotlib

        directory = config.run_dir
        if adapter is not None:
            # Before model/, which says that the run is finished.
            save_adapter(adapter, objective.processor, directory / "adapter", Path(config.model))
            _, difference = merge(adapter, objective.processor)
            console.print(f"adapter merged into the model; logits differ by at most {difference:.1e}")
        if config.save_precision == "bf16":
            objective.model.to(torch.bfloat16)
        objective.save(directory / "model")
        draw_curves(read_json_lines(directory / "metrics.jsonl"), directory / "curves.png", directory.name)
        write_report(directory)
        console.print("done", summary_table(summarise(directory)), sep="\n")
        files = {"model": "model", "adapter": "adapter", "metrics": "metrics.jsonl", "curves": "curves.png"}
        files |= {"report": "report.html", "left out": quarantine.path.name}
        for name, file in files.items():
            if (directory / file).exists():
                console.print(f"  {name:8} {directory / file}", markup=False)
    distributed.barrier()
