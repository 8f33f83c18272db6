"""`mmchat replay`: the samples of one step of a run, with their losses."""

import argparse
from pathlib import Path


def add_commands(add) -> None:
    command = add(
        "replay",
        "show the samples of one step of a run: ids, lengths, supervised tokens, loss of each",
        "mmchat replay runs/quickstart --step 1",
    )
    command.add_argument("run_dir", metavar="RUN", type=Path, help="run directory")
    command.add_argument("--step", type=int, required=True, help="number of the step, from 1")
    command.set_defaults(run=run_replay)


def run_replay(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from mmchat.files import read_json_lines
    from mmchat.training.replay import replay

    found = replay(arguments.run_dir, arguments.step)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    table = Table(title=f"step {arguments.step}", title_justify="left")
    for column in ("id", "tokens", "supervised", "images", "loss", "where"):
        table.add_column(column, justify="left" if column in ("id", "where") else "right", overflow="fold")
    for sample in found.samples:
        numbers = (f"{sample.tokens:,}", f"{sample.supervised:,}", str(sample.images), f"{sample.loss:.5f}")
        numbers = ("", "", "", "left out") if sample.left_out else numbers
        table.add_row(sample.id, *numbers, f"{sample.where} {sample.left_out}".strip())
    console.print(table)
    console.print(f"weights: {found.weights}")
    log = arguments.run_dir / "metrics.jsonl"
    rows = [row for row in (read_json_lines(log) if log.exists() else []) if row["step"] == arguments.step]
    logged = next((f"{row['loss']:.6f}" for row in rows if "loss" in row), None)
    skipped = next((row["skipped"] for row in rows if "skipped" in row), "no loss logged")
    console.print(f"loss of the step: {found.loss:.6f} ({f'logged: {logged}' if logged else skipped})")
