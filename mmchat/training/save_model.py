"""The end of a run: its model written and read back, its curves and report, and where everything is."""

from pathlib import Path

import torch
from rich.console import Console

from mmchat.data.quarantine import Quarantine
from mmchat.evaluation.report import write_report
from mmchat.evaluation.summary import summarise, summary_table
from mmchat.files import read_json_lines
from mmchat.model.adapter import merge, save_adapter
from mmchat.training.build_model import Opened, open_model
from mmchat.training.config import RunConfig
from mmchat.training.distributed import collectives
from mmchat.training.distributed.zero3 import full_state_dict, load_full_state_dict
from mmchat.training.optim.ema import WeightAverage
from mmchat.training.optim.frozen_weights import restore_frozen


def finish(
    config: RunConfig, opened: Opened, average: WeightAverage | None, quarantine: Quarantine, console: Console
) -> None:
    """Write the final model, curves and report, say what came out and where it is. All ranks call this, rank 0 acts."""
    in_parts = config.distributed.zero_stage == 3
    if collectives.rank() == 0 and not in_parts:
        # There is room in the CPU's memory; beside what trains a large model there may be none.
        restore_frozen(opened.objective.model.cpu(), Path(config.model))
    state = full_state_dict(opened.objective.model) if in_parts or average else None
    averaged = average.whole() if average else None
    if collectives.rank() == 0:
        # model/ comes last: it says that the run is finished.
        if averaged is not None:
            write_model(config, put_together(config, state | averaged), "-ema", console)
        write_model(config, put_together(config, state) if in_parts else opened, "", console)
        tell_results(config.run_dir, quarantine, console)
    collectives.barrier()


def put_together(config: RunConfig, state: dict[str, torch.Tensor]) -> Opened:
    """The run's model as a whole, with these weights."""
    opened = open_model(config)
    load_full_state_dict(opened.objective.model, state)
    return opened


def write_model(config: RunConfig, opened: Opened, suffix: str, console: Console) -> None:
    """Write adapter/ where there is one, merge it, write model/; the weights may be rounded thereby."""
    objective = opened.objective
    if opened.adapter is not None:
        place, base = config.run_dir / f"adapter{suffix}", Path(config.model)
        save_adapter(opened.adapter, objective.processor, place, base, config.objective.fit)
        _, difference = merge(opened.adapter, objective.processor)
        console.print(f"adapter merged into the model; logits differ by at most {difference:.1e}")
    if config.save_precision == "bf16":
        # Not `.to`: that would round rotary frequencies as well, which a model that is opened has in fp32.
        for parameter in objective.model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    objective.save(config.run_dir / f"model{suffix}")


def tell_results(directory: Path, quarantine: Quarantine, console: Console) -> None:
    """Draw the curves, write the report, print the summary and where things are."""
    from mmchat.training.monitoring.curves import draw_curves  # loads matplotlib

    draw_curves(read_json_lines(directory / "metrics.jsonl"), directory / "curves.png", directory.name)
    write_report(directory)
    console.print("done", summary_table(summarise(directory)), sep="\n")
    files = {"model": "model", "adapter": "adapter", "average": "model-ema", "metrics": "metrics.jsonl"}
    files |= {"curves": "curves.png", "report": "report.html", "left out": quarantine.path.name}
    for name, file in files.items():
        if (directory / file).exists():
            console.print(f"  {name:8} {directory / file}", markup=False)
