"""The directory of a run: a new run may start in an empty one, and a run may resume in its own."""

from collections.abc import Callable
from pathlib import Path

import yaml

from mmchat.errors import UserError
from mmchat.files import write_text
from mmchat.training.checkpoints.loader import newest_checkpoint
from mmchat.training.config import RunConfig, as_dict, changed_keys, load_written_config
from mmchat.training.distributed import collectives, process_group


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
        if changed := changed_keys(load_written_config(resolved), config):
            raise UserError(
                f"{directory} was started with other settings ({'; '.join(changed)}); a resumed run must keep them"
            )
    collectives.barrier()  # every rank has read the config before rank 0 writes
    if (directory / "model" / "config.json").exists():
        return "finished"
    if process_group.rank() == 0:
        write_text(resolved, yaml.safe_dump(as_dict(config), sort_keys=False))
    return newest_checkpoint(directory / "checkpoints", report) if config.resume else None
