"""`inputs.json`: hashes of the data and weights that a run reads, so that a repetition knows whether they are the same.

Of the data, the files with the records are hashed (shards and tables with their images); loose images are not. Hashes
are cached by path, size and times of change (`data.storage`), so that a later stage does not read a file again.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mmchat.data import storage
from mmchat.data.config import DataConfig
from mmchat.data.mixture import Mixture
from mmchat.data.sources import Source, open_source
from mmchat.files import read_json, write_json
from mmchat.hub import resolve
from mmchat.opening import weight_files
from mmchat.training.config import RunConfig

FILE = "inputs.json"
MOST_FILES = 100
"""Of a source with more files one hash of all is recorded."""


def hash_inputs(config: RunConfig, opened: Mixture | None = None) -> dict[str, dict[str, Any]]:
    """Name of an input, as `model`, `data.sources.NAME` or `validation` -> its path and hashes.

    Args:
        opened: the training data, if it is open already: opening a large file takes as long as hashing it.
    """
    found = {"model": {"path": config.model, "files": _weights(config.model)}}
    if config.objective.distillation is not None:
        teacher = config.objective.distillation.teacher
        found["objective.distillation.teacher"] = {"path": str(teacher), "files": _weights(teacher)}
    sources = {} if opened is None else {source.name: source.source for source in opened.sources}
    found |= dict(_sources("data", config.data, sources))
    return found | (dict(_sources("validation", config.validation, {})) if config.validation is not None else {})


def _weights(model: str | Path) -> dict[str, str]:
    source = resolve(model)
    files = [source] if source.is_file() else weight_files(source)
    return {path.name: storage.content_digest([str(path)]) for path in files}


def _sources(group: str, data: DataConfig, opened: dict[str, Source]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, source in data.by_name().items():
        known = opened.get(name) or open_source(source.path, source.image_root, source.allow_http)
        files = known.table.files
        if len(files) > MOST_FILES:  # folders of images
            hashes = {f"{len(files)} files": known.digest()}
        else:
            hashes = {PurePosixPath(file).name: storage.content_digest([file]) for file in files}
        yield group if data.path is not None else f"{group}.sources.{name}", {"path": source.path, "files": hashes}


def record_inputs(config: RunConfig, opened: Mixture | None = None) -> list[str]:
    """Write `inputs.json` into the run directory, or compare with it if the run is resumed. Only rank 0 calls this.

    Args:
        opened: as for `hash_inputs`.

    Returns:
        A line for each input that has changed since the run began.
    """
    path = config.run_dir / FILE
    if path.exists():
        return changed_inputs(config, config.run_dir, opened)
    write_json(path, hash_inputs(config, opened))
    return []


def changed_inputs(config: RunConfig, run_dir: Path, opened: Mixture | None = None) -> list[str]:
    """A line for each input that is not as `inputs.json` of a run directory says."""
    before, now = read_json(run_dir / FILE), hash_inputs(config, opened)
    changed = [name for name in before if name in now and before[name]["files"] != now[name]["files"]]
    return [f"{name} has changed since the run began: {_what(before[name], now[name])}" for name in changed]


def _what(before: dict[str, Any], now: dict[str, Any]) -> str:
    old, new = before["files"], now["files"]
    changed = [file for file in old if file in new and old[file] != new[file]]
    gone, added = [file for file in old if file not in new], [file for file in new if file not in old]
    parts = [*changed, *(f"{file} is gone" for file in gone), *(f"{file} is new" for file in added)]
    return f"{', '.join(parts)} (in {now['path']})"
