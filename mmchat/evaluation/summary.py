"""A run in a dozen figures, read from its files, for the terminal and the report."""

from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.table import Table

from mmchat.errors import UserError
from mmchat.files import read_json_lines
from mmchat.progress import format_duration


def summarise(run_dir: Path) -> dict[str, str | None]:
    """The figures of a run.

    Rates are per second of step time, without validation and checkpoints. MFU and data wait are logged over the last 20
    steps; their means are weighted by time, so in a very short run early steps weigh more.

    Returns:
        Name -> figure as text; None if the run has none, such as images/s without images.

    Raises:
        UserError: the directory has no metrics.jsonl.
    """
    if not (run_dir / "metrics.jsonl").exists():
        raise UserError(f"{run_dir / 'metrics.jsonl'} does not exist: no run has started there")
    rows = read_json_lines(run_dir / "metrics.jsonl")
    steps = [row for row in rows if "seconds" in row]
    losses = [row["loss"] for row in steps if "loss" in row]
    held_out = [row["validation_loss"] for row in rows if "validation_loss" in row]
    validation_top1 = [row["validation_top1"] for row in rows if "validation_top1" in row]
    zero_shot = [row["zero_shot_top1"] for row in rows if "zero_shot_top1" in row]
    skipped = len(steps) - len(losses)
    seconds = sum(row["seconds"] for row in steps)

    def rate(field: str) -> float | None:
        total = sum(row[field] for row in steps)
        return total / seconds if total and seconds else None

    def mean(field: str) -> float | None:
        known = [(row[field], row["seconds"]) for row in steps if row.get(field) is not None]
        return sum(value * time for value, time in known) / sum(time for _, time in known) if known else None

    memory = max((row["memory"] for row in steps if "memory" in row), default=None)
    return {
        "steps": f"{len(losses):,}" + (f" and {skipped:,} skipped" if skipped else ""),
        "time": format_duration(seconds),
        "last loss": _formatted(losses[-1] if losses else None, "{:.4f}"),
        "validation loss": _formatted(held_out[-1] if held_out else None, "{:.4f}"),
        "validation top-1": _formatted(validation_top1[-1] if validation_top1 else None, "{:.1%}"),
        "zero-shot top-1": _formatted(zero_shot[-1] if zero_shot else None, "{:.1%}"),
        "supervised tokens/s": _formatted(rate("terms"), "{:,.0f}"),
        "tokens/s": _formatted(rate("tokens"), "{:,.0f}"),
        "images/s": _formatted(rate("images"), "{:,.1f}"),
        "MFU": _formatted(mean("mfu"), "{:.1%}"),
        "batch fill": _formatted(mean("fill"), "{:.1%}"),
        "data wait": _formatted(mean("data_wait"), "{:.1%}"),
        "peak memory": _formatted(memory, "{:,.2f} GiB", 1 / 2**30),
        "tokens cut": f"{sum(row.get('cut', 0) for row in steps):,}",
        "samples left out": f"{len(read_lines_of(run_dir / 'quarantine.jsonl')):,}",
    }


def summary_table(figures: dict[str, str | None]) -> Table:
    """Two columns of names and figures, of those that there are."""
    table = Table(show_header=False, box=None, padding=(0, 4, 0, 0))
    for justify in ("left", "right") * 2:
        table.add_column(justify=justify)
    cells = [(name, figure) for name, figure in figures.items() if figure is not None]
    half = -(-len(cells) // 2)
    for left, right in zip_longest(cells[:half], cells[half:], fillvalue=("", "")):
        table.add_row(*left, *right)
    return table


def read_lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; none if it does not exist, because there was nothing to write."""
    return read_json_lines(path) if path.exists() else []


def _formatted(value: float | None, form: str, scale: float = 1) -> str | None:
    return None if value is None else form.format(value * scale)
