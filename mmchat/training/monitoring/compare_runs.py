"""Several runs side by side: in what their configs differ, their figures, their scores."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.evaluation.metrics import Interval, share_interval
from mmchat.evaluation.summary import summarise
from mmchat.files import parse_yaml, read_json

PLACES = ("run_dir", "resume")
"""Keys that say where a run is, not what it is."""
DEPTH = 3
"""Folders below the one that is given in which runs are looked for."""


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """The run directories that are, or are in, these folders, sorted.

    Raises:
        UserError: A folder does not exist, or none holds a run.
    """
    found: set[Path] = set()
    folders = list(folders)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; name run directories, or folders of them")
        patterns = ["/".join(["*"] * depth + ["config.yaml"]) for depth in range(DEPTH + 1)]
        found |= {path.parent for pattern in patterns for path in folder.glob(pattern) if is_run(path.parent)}
    if not found:
        raise UserError(
            f"{', '.join(map(str, folders))}: no run directory is there; a run has config.yaml and metrics.jsonl"
        )
    return sorted(found)


def is_run(directory: Path) -> bool:
    return all((directory / name).is_file() for name in ("config.yaml", "metrics.jsonl"))


def check_runs(directories: Iterable[Path]) -> None:
    """Raises UserError for a directory that is not that of a run."""
    for directory in directories:
        if not is_run(directory):
            raise UserError(f"{directory} is not a run directory: it has no config.yaml and metrics.jsonl of a run")


def config_of(directory: Path) -> dict[str, Any]:
    """The resolved config: dotted key -> value."""
    values = parse_yaml((directory / "config.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in _leaves(values).items() if key not in PLACES}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def differences(directories: list[Path]) -> dict[str, list[Any]]:
    """Dotted key -> its value in each run, for the keys that differ.

    None where a run has no such key, or where it is null, false or empty: one may spell out what another leaves out.
    """
    configs = [config_of(directory) for directory in directories]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = {key: [_value(config.get(key)) for config in configs] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def _value(value: Any) -> Any:
    return None if value is False or value in ([], {}) else value


def shown(value: Any) -> str:
    """A value of a config as text: a list without brackets, "-" for none."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


def scores_of(directory: Path) -> dict[str, Any]:
    """The content of scores.json; empty if the run was not scored."""
    path = directory / "scores.json"
    return read_json(path) if path.exists() else {}


def interval(score: float, questions: int) -> Interval:
    """Wilson's 95 % interval of the share of right answers, which scores.json has without the number of hits."""
    return share_interval(round(score * questions), questions)


def score_rows(directories: list[Path]) -> dict[str, list[tuple[float, float, float] | None]]:
    """Kind of question, and "overall" last -> (score, low, high) of each run; None where a run has none.

    Raises:
        UserError: Runs were scored on other numbers of questions of a kind.
    """
    all_scores = [scores_of(directory) for directory in directories]
    kinds = dict.fromkeys(k for scores in all_scores for k in scores if k.startswith("kind/") and k.count("/") == 1)
    rows: dict[str, list[tuple[float, float, float] | None]] = {}
    for key in (*kinds, "overall"):
        counts = {scores[f"{key}/questions"] for scores in all_scores if f"{key}/questions" in scores}
        if len(counts) > 1:
            raise UserError(
                f"the runs were scored on other questions: {key.removeprefix('kind/')} has "
                f"{' and '.join(map(str, sorted(counts)))}; evaluate all on one file"
            )
        if counts:
            rows[key.removeprefix("kind/")] = [_with_interval(scores, key) for scores in all_scores]
    return rows


def _with_interval(scores: dict[str, Any], key: str) -> tuple[float, float, float] | None:
    return (scores[key], *interval(scores[key], scores[f"{key}/questions"])) if key in scores else None


def figures_of(directories: list[Path]) -> dict[str, list[str | None]]:
    """Name of a figure -> its value in each run, for figures that any run has."""
    all_figures = [summarise(directory) for directory in directories]
    rows = {name: [figures[name] for figures in all_figures] for name in all_figures[0]}
    return {name: values for name, values in rows.items() if any(values)}


def names_of(directories: list[Path]) -> list[str]:
    """A short name for each: the last parts of its path that tell it from the others."""
    parts = [directory.resolve().parts for directory in directories]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"the same run is named twice: {', '.join(map(str, directories))}")
