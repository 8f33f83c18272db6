"""Everything in a checkpoint is restored, also if it was written by another number of ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch

from mmchat.errors import SharedError, counted
from mmchat.training.checkpoints.reshard import load_resharded, needs_resharding
from mmchat.training.checkpoints.rng_state import restore_rng_state, seed_all
from mmchat.training.checkpoints.storage import ChecksummedFiles, read_manifest
from mmchat.training.deepspeed_internals import set_checkpoint_engine
from mmchat.training.distributed import process_group


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
            f"resuming on {counted(process_group.world_size(), 'rank')} instead of {manifest.ranks}: the result is the "
            "same up to rounding, except that dropout, if any, draws other random numbers"
        )
    return state
