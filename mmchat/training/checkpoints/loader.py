"""The newest undamaged checkpoint of a run is found, and everything in it is restored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch

from mmchat.errors import SharedError
from mmchat.training.checkpoints.reshard import load_resharded, needs_resharding
from mmchat.training.checkpoints.rng_state import restore_rng_state, seed_all
from mmchat.training.checkpoints.storage import LATEST, ChecksummedFiles, find_damage, list_checkpoints, read_manifest
from mmchat.training.deepspeed_internals import set_checkpoint_engine
from mmchat.training.distributed import process_group


def newest_checkpoint(directory: Path, report: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint, or None if there is none at all. All ranks call this.

    The search starts at the checkpoint that `latest` names.

    Args:
        report: called with a line for each checkpoint that is skipped.

    Raises:
        SharedError: there are checkpoints, but all of them are damaged.
    """
    pointer = directory / LATEST
    if not pointer.exists():
        return None
    latest = directory / pointer.read_text(encoding="utf-8").strip()
    candidates = [path for path in reversed(list_checkpoints(directory)) if path.name <= latest.name]
    if latest not in candidates:
        report(f"{pointer} names {latest.name}, which does not exist")
    for checkpoint, older in zip(candidates, [*candidates[1:], None], strict=True):
        problem = find_damage(checkpoint)
        if problem is None:
            return checkpoint
        report(f"checkpoint {checkpoint} is damaged: {problem}" + (f"; trying {older.name}" if older else ""))
    raise SharedError(f"{directory} has no undamaged checkpoint; to start again, name another run_dir")


def load_checkpoint(
    engine: deepspeed.DeepSpeedEngine, checkpoint: Path, seed: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Restore everything that `CheckpointSaver.save` wrote.

    On the same number of ranks the run continues bit for bit. On another number it continues up to rounding, and the
    random generators of each rank are seeded with a function of (seed, step, rank).

    Args:
        report: called with a line if the number of ranks has changed.

    Returns:
        The saved `state` and `step`, the number of optimizer steps done.

    Raises:
        SharedError: the checkpoint was written under another ZeRO stage, or could not be converted for this number of
            ranks.
    """
    manifest = read_manifest(checkpoint)
    if manifest.zero_stage != engine.zero_optimization_stage():
        raise SharedError(
            f"{checkpoint} was written under ZeRO {manifest.zero_stage}, this run uses ZeRO "
            f"{engine.zero_optimization_stage()}; resume with distributed.zero_stage: {manifest.zero_stage}"
        )
    set_checkpoint_engine(engine, ChecksummedFiles())
    if needs_resharding(checkpoint):
        state = load_resharded(engine, checkpoint)
    else:
        _, state = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if manifest.ranks == process_group.world_size():
        path = checkpoint / f"random-rank-{process_group.rank()}.pt"
        restore_rng_state(torch.load(path, weights_only=True))
    else:
        seed_all(seed, state["step"], process_group.rank())
        report(
            f"resuming on {process_group.world_size()} rank(s) instead of {manifest.ranks}: the result is the same up "
            "to rounding, except that dropout, if any, draws other random numbers"
        )
    return state
