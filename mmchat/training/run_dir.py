"""The directory of a run: who may begin or go on there."""

from collections.abc import Callable
from pathlib import Path

import yaml

from mmchat.errors import UserError
from mmchat.files import write_text
from mmchat.training.checkpoints.saver import newest_checkpoint
from mmchat.training.config import TRAJECTORY, RunConfig, as_dict
from mmchat.training.distributed import collectives


def claim(config: RunConfig, tell: Callable[[str], None]) -> Path | str | None:
    """The checkpoint to resume from, "finished", or None for a fresh start. All ranks call this.

    `tell` is given a line for each damaged checkpoint.

    Raises:
        UserError: the directory holds another run, or this one with other settings.
    """
    directory, resolved = config.run_dir, config.run_dir / "config.yaml"
    values = as_dict(config)
    if resolved.exists():
        if not config.resume:
            raise UserError(f"{directory} already holds a run; add --resume to go on with it, or name another run_dir")
        before = yaml.safe_load(resolved.read_text(encoding="utf-8"))
        changed = [key for key in TRAJECTORY if before.get(key) != values[key]]
        if changed:
            difference = "; ".join(f"{key}: {before.get(key)} -> {values[key]}" for key in changed)
            raise UserError(f"{directory} was begun with other settings ({difference}); a resumed run must keep them")
    collectives.barrier()  # every rank has looked before rank 0 writes
    if (directory / "model" / "config.json").exists():
        return "finished"
    if collectives.rank() == 0:
        write_text(resolved, yaml.safe_dump(values, sort_keys=False))
    return newest_checkpoint(directory / "checkpoints", tell) if config.resume else None
