"""The directory of a run: a new run may start in an empty one, and a run may resume in its own."""

from collections.abc import Callable
from pathlib import Path

import yaml

from mmchat.errors import UserError
from mmchat.files import read_json, write_json, write_text
from mmchat.training.checkpoints.retention import newest_checkpoint
from mmchat.training.config import RunConfig, as_dict, changed_keys, load_written_config
from mmchat.training.distributed import collectives, process_group

DEEPSPEED_JSON = "deepspeed.json"
"""Copy of the user's own DeepSpeed JSON, to be compared on resume."""


def claim_run_dir(config: RunConfig, report: Callable[[str], None]) -> Path | str | None:
    """Write the resolved config into the run directory. All ranks call this.

    Args:
        report: called with a line for each damaged checkpoint.

    Returns:
        The checkpoint to resume from, "finished", or None for a fresh start.

    Raises:
        UserError: the directory holds another run, or this one with other settings.
    """
    directory, resolved = config.run_dir, config.run_dir / "config.yaml"
    if resolved.exists():
        if not config.resume:
            raise UserError(f"{directory} already holds a run; add --resume to resume it, or name another run_dir")
        before = load_written_config(resolved)
        if changed := changed_keys(before, config) + _changed_json(directory, before, config):
            raise UserError(
                f"{directory} was started with other settings ({'; '.join(changed)}); a resumed run must keep them "
                f"and its length. To train longer or otherwise, {_new_run(directory)}"
            )
    collectives.barrier()  # every rank has read the config before rank 0 writes
    if (directory / "model" / "config.json").exists():
        return "finished"
    if process_group.rank() == 0:
        write_text(resolved, yaml.safe_dump(as_dict(config), sort_keys=False))
        if config.distributed.deepspeed is not None:
            write_json(directory / DEEPSPEED_JSON, read_json(config.distributed.deepspeed))
    return newest_checkpoint(directory / "checkpoints", report) if config.resume else None


def _new_run(directory: Path) -> str:
    """What to do instead of resuming with other settings."""
    command = f"start a new run from its model: --model {directory / 'model'} --run_dir NEW, without --resume"
    is_finished = (directory / "model" / "config.json").exists()
    return command if is_finished else f"resume it as it is to the end, then {command}"


def _changed_json(directory: Path, before: RunConfig, now: RunConfig) -> list[str]:
    """One line if DeepSpeed's own settings differ, wherever their file is."""
    old, new, copy = before.distributed.deepspeed, now.distributed.deepspeed, directory / DEEPSPEED_JSON
    if old is None or new is None:
        return [] if old == new else [f"distributed.deepspeed: {old} -> {new}"]
    if copy.exists():  # else the run was begun before copies were made
        old = copy
    return [] if read_json(old) == read_json(new) else [f"distributed.deepspeed: content of {old} -> content of {new}"]
