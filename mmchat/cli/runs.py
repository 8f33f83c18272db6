"""`mmchat runs`: a table of run directories."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = "mmchat runs runs/quickstart runs/quickstart-1"
SHOWN = ("steps", "last loss", "validation loss", "tokens/s", "peak memory", "time")
"""Figures of a run's summary that the table shows."""
MOST_KEYS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(
        "One row per run: loss, scores, throughput, memory; below, the config keys in which the runs differ. Runs are "
        "looked for up to three folders deep."
    )
    parser.add_argument(
        "folders", metavar="FOLDER", type=Path, nargs="*", help="run directories or folders of them; default: runs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, score and difference")


def run(arguments: argparse.Namespace) -> None:
    from mmchat.files import write_json
    from mmchat.terminal import PlainConsole
    from mmchat.training.monitoring.compare_runs import differences, figures_of, find_runs, names_of, scores_of

    found = find_runs(arguments.folders or [Path("runs")])
    names, figures, differing = names_of(found), figures_of(found), differences(found)
    scores = [scores_of(directory).get("overall") for directory in found]
    console = PlainConsole(highlight=False, soft_wrap=True)
    console.print(_runs_table(names, figures, scores))
    if len(found) > 1:
        console.print(_differences_table(names, differing))
        if len(differing) > MOST_KEYS:
            console.print(f"and {len(differing) - MOST_KEYS} more keys; --json FILE has all")
    if arguments.json:
        runs = [
            {
                "run_dir": str(directory),
                "figures": {name: values[place] for name, values in figures.items()},
                "scores": scores_of(directory),
                "differs": {key: values[place] for key, values in differing.items()},
            }
            for place, directory in enumerate(found)
        ]
        write_json(arguments.json, {"runs": runs})


def _runs_table(names: list[str], figures: dict[str, list[str | None]], scores: list[float | None]) -> Any:
    from rich.table import Table

    table = Table(title=f"{len(names)} runs", title_justify="left")
    table.add_column("run", overflow="fold")
    shown = [name for name in SHOWN if name in figures]
    for name in [*shown, *(["exact match"] if any(score is not None for score in scores) else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    for place, name in enumerate(names):
        score = scores[place]
        cells = ["-" if score is None else f"{score:.1%}"] if any(one is not None for one in scores) else []
        table.add_row(name, *(figures[figure][place] or "-" for figure in shown), *cells)
    return table


def _differences_table(names: list[str], differing: dict[str, list[Any]]) -> Any:
    from rich.table import Table

    from mmchat.training.monitoring.compare_runs import shown

    table = Table(title="what differs in their configs", title_justify="left")
    table.add_column("key", overflow="fold")
    for name in names:
        table.add_column(name, overflow="fold")
    for key, values in list(differing.items())[:MOST_KEYS]:
        table.add_row(key, *map(shown, values))
    if not differing:
        table.add_row("(nothing)", *[""] * len(names))
    return table
