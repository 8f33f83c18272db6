"""`mmchat replay`: the samples of one step of a run, with their losses."""

import argparse
from pathlib import Path

from mmchat.command_line.arguments import positive
from mmchat.command_line.quick_imports import quick_imports

EXAMPLE = "mmchat replay runs/quickstart --step 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(
        "Prints id, tokens, supervised tokens, images and loss of each sample. Use it to explain a spike."
    )
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="run directory")
    parser.add_argument("--step", type=positive, required=True, metavar="N", help="number of the step, from 1")


def run(arguments: argparse.Namespace) -> None:
    from mmchat.training.config import read_replayable
    from mmchat.training.preflight import check_model, check_source

    config = read_replayable(arguments.run_dir)
    check_model(config)
    for source in config.data.by_name().values():
        check_source(source)
    with quick_imports():  # mistakes have been found
        from rich.table import Table

        from mmchat.terminal import PlainConsole
        from mmchat.training.replay import replay
    found = replay(arguments.run_dir, arguments.step)
    console = PlainConsole(highlight=False, soft_wrap=True)
    table = Table(title=f"step {arguments.step}", title_justify="left")
    for column in ("id", "tokens", "supervised", "images", "loss", "where"):
        table.add_column(column, justify="left" if column in ("id", "where") else "right", overflow="fold")
    for sample in found.samples:
        numbers = (f"{sample.tokens:,}", f"{sample.supervised:,}", str(sample.images), f"{sample.loss:.5f}")
        numbers = ("", "", "", "left out") if sample.left_out else numbers
        table.add_row(sample.id, *numbers, f"{sample.where} {sample.left_out}".strip())
    console.print(table)
    console.print(f"weights: {found.weights}")
    console.print(f"loss of the step: {found.loss:.6f} ({logged_loss(arguments.run_dir, arguments.step)})")


def logged_loss(run_dir: Path, step: int) -> str:
    """What metrics.jsonl says about the loss of a step."""
    from mmchat.files import read_json_lines

    log = run_dir / "metrics.jsonl"
    rows = [row for row in (read_json_lines(log) if log.exists() else []) if row["step"] == step]
    loss = next((row["loss"] for row in rows if "loss" in row), None)
    if loss is not None:
        return f"logged: {loss:.6f}"
    return next((row["skipped"] for row in rows if "skipped" in row), "no loss logged")
