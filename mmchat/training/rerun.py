"""Whether a run repeats itself: what it was made of is compared, then its first steps with those of a second run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.files import read_json, read_json_lines
from mmchat.training.monitoring.inputs import FILE, changed_inputs

COMPARED = ("ids", "loss", "grad_norm")
"""Fields of a step, in the order in which a difference would begin: other samples, another loss, another gradient."""


@dataclass(frozen=True)
class Comparison:
    """Two runs' first steps.

    Attributes:
        steps: How many both have.
        first: The first that differs; None if all are equal bit for bit.
        field: In what it differs: one of `COMPARED`.
        before, now: The values of that field.
    """

    steps: int
    first: int | None = None
    field: str = ""
    before: Any = None
    now: Any = None

    def __str__(self) -> str:
        if self.first is None:
            return f"equal: losses and gradient norms of steps 1 to {self.steps} are the same bit for bit"
        if self.field == "ids":
            return f"different since step {self.first}: it had other samples ({self.before} then, {self.now} now)"
        return f"different since step {self.first}: {self.field} was {self.before!r} and is {self.now!r}"


def compare_steps(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> Comparison:
    """Compare rows of two metrics.jsonl, step by step, exactly.

    Raises:
        UserError: They have no step in common.
    """
    old, new = ({row["step"]: row for row in rows if "ids" in row} for rows in (before, now))
    common = sorted(old.keys() & new.keys())
    if not common:
        raise UserError("metrics.jsonl of the run has none of the steps that were repeated; nothing can be compared")
    for step in common:
        for field in COMPARED:
            if old[step].get(field) != new[step].get(field):
                return Comparison(len(common), step, field, old[step].get(field), new[step].get(field))
    return Comparison(len(common))


def compare_run_dirs(before: Path, now: Path, steps: int) -> Comparison:
    rows = [[row for row in read_json_lines(d / "metrics.jsonl") if row["step"] <= steps] for d in (before, now)]
    return compare_steps(*rows)


def known_changes(config: Any, directory: Path) -> list[str]:
    """A line for each input that has changed since the run began, or one that says that nothing was recorded."""
    if not (directory / FILE).exists():
        return [f"{directory / FILE} does not exist: whether data and weights are the same is unknown"]
    return changed_inputs(config, directory)


def environment_changes(before: Path, now: Path) -> list[str]:
    """A line for each package, device or number of ranks in which two runs differ."""
    old, new = (_flat(read_json(directory / "environment.json")) for directory in (before, now))
    return [f"{name}: {old.get(name)} then, {new.get(name)} now" for name in old if old.get(name) != new.get(name)]


def _flat(environment: dict[str, Any]) -> dict[str, Any]:
    kept = {name: environment.get(name) for name in ("python", "platform", "processor", "device", "ranks")}
    return kept | environment["packages"]
