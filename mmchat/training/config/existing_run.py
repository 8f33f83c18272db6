"""What a run directory holds before a run starts: nothing, or the run that is resumed with its own settings."""

from pathlib import Path

from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.training.config.moved import load_written_config
from mmchat.training.config.resume import changed_keys
from mmchat.training.config.run import RunConfig

DEEPSPEED_JSON = "deepspeed.json"
"""Copy of the user's own DeepSpeed JSON, to be compared on resume."""


def check_run_dir(config: RunConfig) -> None:
    """Check that the run may use its directory.

    Raises:
        UserError: the directory holds another run, or this one with other settings.
    """
    directory, resolved = config.run_dir, config.run_dir / "config.yaml"
    if not resolved.exists():
        return
    if not config.resume:
        raise UserError(f"{directory} already holds a run; add --resume to resume it, or name another run_dir")
    before = load_written_config(resolved)
    if changed := changed_keys(before, config) + _changed_json(directory, before, config):
        raise UserError(
            f"{directory} was started with other settings ({'; '.join(changed)}); a resumed run must keep them "
            f"and its length. To train longer or otherwise, {_new_run(directory)}"
        )


def read_replayable(directory: Path) -> RunConfig:
    """The config of a run whose samples have losses of their own.

    Raises:
        UserError: there is no such run, or its objective has losses of whole batches only.
    """
    config = load_written_config(directory / "config.yaml")
    if not config.objective.replayable:
        raise UserError(
            f"replay shows losses per sample; objective {config.objective.kind} only has losses of whole batches"
        )
    return config


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
