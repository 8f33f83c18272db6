"""The directory of a run: a new run may start in an empty one, and a run may resume in its own."""

from collections.abc import Callable
from pathlib import Path

import yaml

from mmchat.files import read_json, write_json, write_text
from mmchat.training.checkpoints.retention import newest_checkpoint
from mmchat.training.config import DEEPSPEED_JSON, RunConfig, as_dict, check_run_dir
from mmchat.training.distributed import collectives, process_group


def claim_run_dir(config: RunConfig, report: Callable[[str], None]) -> Path | str | None:
    """Write the resolved config into the run directory. All ranks call this.

    Args:
        report: called with a line for each damaged checkpoint.

    Returns:
        The checkpoint to resume from, "finished", or None for a fresh start.

    Raises:
        UserError: see `check_run_dir`.
    """
    directory, resolved = config.run_dir, config.run_dir / "config.yaml"
    check_run_dir(config)
    collectives.barrier()  # every rank has read the config before rank 0 writes
    if (directory / "model" / "config.json").exists():
        return "finished"
    if process_group.rank() == 0:
        write_text(resolved, yaml.safe_dump(as_dict(config), sort_keys=False))
        if config.distributed.deepspeed is not None:
            write_json(directory / DEEPSPEED_JSON, read_json(config.distributed.deepspeed))
    return newest_checkpoint(directory / "checkpoints", report) if config.resume else None
