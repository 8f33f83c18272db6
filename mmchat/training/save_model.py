"""The end of a run: its model is written and read back, its curves and report are drawn."""

import shlex
from dataclasses import replace

import torch
from rich.console import Console

from mmchat.data.quarantine import Quarantine
from mmchat.evaluation.report import write_report
from mmchat.evaluation.summary import summarise, summary_table
from mmchat.files import read_json_lines
from mmchat.hub import resolve
from mmchat.model.directory import comparison_logits
from mmchat.model.lora_adapter import merge, save_adapter
from mmchat.training.build_model import BuiltModel, build_model
from mmchat.training.compilation import run_as_written
from mmchat.training.config import RunConfig
from mmchat.training.distributed import collectives, process_group
from mmchat.training.distributed.zero3 import full_state_dict, load_full_state_dict
from mmchat.training.optim.ema import WeightAverage
from mmchat.training.optim.frozen_weights import restore_frozen

WRITTEN = {
    "model": "model",
    "adapter": "adapter",
    "average": "model-ema",
    "metrics": "metrics.jsonl",
    "curves": "curves.png",
    "report": "report.html",
}
"""What a run directory holds at the end, by the word on the terminal."""


def save_model(
    config: RunConfig, built: BuiltModel, average: WeightAverage | None, quarantine: Quarantine, console: Console
) -> None:
    """Write the final model, curves and report, and print the results. All ranks call this; rank 0 writes."""
    sharded, config = config.distributed.zero_stage == 3, replace(config, compile=[])
    run_as_written(built.objective.model)
    if process_group.rank() == 0 and not sharded:
        # In CPU memory there is room for the originals; next to a large model on the device there may be none.
        restore_frozen(built.objective.model.cpu(), resolve(config.model))
        for parameter in built.objective.model.parameters():
            if parameter.requires_grad:  # in fp32, so that what is written can be compared with what is read back
                parameter.data = parameter.data.float()
        if config.quantize is not None:
            built, config = _on_originals(config, built, console), replace(config, quantize=None)
    state = full_state_dict(built.objective.model) if sharded or average else None
    averaged = average.whole() if average else None
    if process_group.rank() == 0:
        # model/ is written last: it marks the run as finished.
        if averaged is not None:
            write_model(config, _rebuild(config, state | averaged), "-ema", console)
        write_model(config, _rebuild(config, state) if sharded else built, "", console)
        print_results(config, quarantine, console)
    collectives.barrier()


def _on_originals(config: RunConfig, built: BuiltModel, console: Console) -> BuiltModel:
    """What was trained beside a 4-bit base, on the original weights; says by how much logits move."""
    rebuilt = build_model(replace(config, quantize=None))
    trained = {name: p for name, p in built.objective.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in rebuilt.objective.model.named_parameters():
            if name in trained:
                parameter.copy_(trained.pop(name))
    assert not trained
    models = [one.objective.model.eval() for one in (built, rebuilt)]
    in_4_bits, whole = (comparison_logits(model, built.objective.processor) for model in models)
    console.print(
        "trained beside a base in 4 bits and written with the original weights; logits differ by at most "
        f"{(whole - in_4_bits).abs().max().item():.1e}"
    )
    return rebuilt


def _rebuild(config: RunConfig, state: dict[str, torch.Tensor]) -> BuiltModel:
    """The run's model, unsharded, with these weights."""
    built = build_model(config)
    load_full_state_dict(built.objective.model, state)
    return built


def write_model(config: RunConfig, built: BuiltModel, suffix: str, console: Console) -> None:
    """Write adapter/ if there is one, merge it, write model/; this may round the weights of `built`.

    Args:
        suffix: of the folders' names.
    """
    objective = built.objective
    if built.adapter is not None:
        directory = config.run_dir / f"adapter{suffix}"
        save_adapter(built.adapter, objective.processor, directory, config.model, config.objective.fit)
        _, difference = merge(built.adapter, objective.processor)
        console.print(f"adapter merged into the model; logits differ by at most {difference:.1e}")
    if config.save_precision == "bf16":
        # Not `.to`, which would also round rotary frequencies; a model that is opened has those in fp32.
        for parameter in objective.model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    objective.save(config.run_dir / f"model{suffix}")


def print_results(config: RunConfig, quarantine: Quarantine, console: Console) -> None:
    """Draw curves and report; print the summary, what was written, and a command that uses the model."""
    from mmchat.training.monitoring.curves import draw_curves  # imports matplotlib

    directory = config.run_dir
    draw_curves(read_json_lines(directory / "metrics.jsonl"), directory / "curves.png", directory.name)
    write_report(directory)
    console.print("done", summary_table(summarise(directory)), sep="\n")
    for name, file in (WRITTEN | {"left out": quarantine.path.name}).items():
        if (directory / file).exists():
            console.print(f"  {name:8} {directory / file}")
    command = config.objective.use.format(model=shlex.quote(str(directory / WRITTEN["model"])))
    console.print(f"next: {command}")
