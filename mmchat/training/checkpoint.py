"""Checkpoints: written aside, renamed when complete, pointed at last. A half-written one is never picked up."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch

from mmchat.errors import SharedError, UserError
from mmchat.files import replace_directory, write_json, write_text
from mmchat.training import distributed
from mmchat.training.checkpoint_files import MANIFEST, CheckpointWriter, damage

POINTER = "latest"


def save(engine: deepspeed.DeepSpeedEngine, directory: Path, step: int, keep: int, **state: Any) -> Path:
    """Model, optimizer, schedule and every rank's random state after `step` steps; all ranks call this.

    The position in the data is the step itself (`mmchat.data.order`). `state` comes back from `load`.

    Raises:
        SharedError: it could not be written; what was there before is intact.
    """
    aside, final = directory / f".step-{step:08d}.partial", directory / f"step-{step:08d}"
    if distributed.rank() == 0:
        for unfinished in directory.glob(".step-*.partial"):  # of a run that was killed while it saved
            shutil.rmtree(unfinished, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
    distributed.barrier()
    engine.checkpoint_engine = writer = CheckpointWriter()
    # DeepSpeed's own `latest` file is not replaced atomically, hence the pointer below.
    try:
        engine.save_checkpoint(str(directory), tag=aside.name, client_state={"step": step, **state}, save_latest=False)
    except OSError as error:
        # Under ZeRO rank 0 copies a script of DeepSpeed's as well; the others wait in the barrier behind that.
        writer.error = writer.error or error
        distributed.barrier()
    writer.save(_random_state(), str(aside / f"random-rank-{distributed.rank()}.pt"))
    of_all_ranks = distributed.all_gather([(writer.written, writer.asked, writer.error)])
    errors = [error for *_, error in of_all_ranks if error]
    if not errors:
        manifest = {name: told for written, *_ in of_all_ranks for name, told in written.items()}
        errors = distributed.all_gather(_complete(aside, final, manifest, keep) if distributed.rank() == 0 else [])
    if errors:
        if distributed.rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
        distributed.barrier()
        raise SharedError(_not_written(directory, step, errors[0], sum(asked for _, asked, _ in of_all_ranks)))
    return final


def _complete(aside: Path, final: Path, manifest: dict[str, list[int]], keep: int) -> list[OSError]:
    """Make the written folder the newest checkpoint, on rank 0; the error that prevented it, if any."""
    directory = final.parent
    try:
        write_json(aside / MANIFEST, manifest)
        replace_directory(aside, final)
        write_text(directory / POINTER, final.name)
    except OSError as error:
        return [error]
    # Whatever is newer was damaged or given up when the run went on from an older one.
    there = sorted(directory.glob("step-*"))
    count = there.index(final) + 1
    for old in [*there[: max(0, count - keep)], *there[count:]]:
        shutil.rmtree(old)
    return []


def _not_written(directory: Path, step: int, error: OSError, needed: int) -> str:
    free = shutil.disk_usage(directory).free
    kept = sorted(path.name for path in directory.glob("step-*"))
    missing = f", {(needed - free) / 1e6:,.1f} MB are missing" if needed > free else ""
    return (
        f"the checkpoint of step {step} could not be written to {directory}: {error.strerror}. "
        f"It takes about {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free{missing}. "
        "The unfinished one is removed; "
        + (f"{kept[-1]} is intact" if kept else "there is none before it")
        + ". Make room, then go on with --resume"
    )


def newest(directory: Path, tell: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint, or None where there is none at all; all ranks call this.

    The search begins at the one that the pointer names. `tell` is given a line for each that is passed over.

    Raises:
        SharedError: there are checkpoints and all of them are damaged.
    """
    pointer = directory / POINTER
    if not pointer.exists():
        return None
    named = directory / pointer.read_text(encoding="utf-8").strip()
    found = sorted((path for path in directory.glob("step-*") if path.name <= named.name), reverse=True)
    if named not in found:
        tell(f"{pointer} names {named.name}, which is not there")
    for checkpoint, before in zip(found, [*found[1:], None], strict=True):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        tell(f"checkpoint {checkpoint} is damaged: {problem}" + (f"; trying {before.name}" if before else ""))
    raise SharedError(f"{directory} holds no undamaged checkpoint; name another run_dir to begin again")


def load(engine: deepspeed.DeepSpeedEngine, checkpoint: Path) -> dict[str, Any]:
    """Restore everything that `save` wrote; returns its `state` with `step`, the number of steps done.

    Raises:
        UserError: the checkpoint was written by another number of ranks.
    """
    random_states = sorted(checkpoint.glob("random-rank-*.pt"))
    if len(random_states) != distributed.ranks():
        raise UserError(
            f"{checkpoint} was written by {len(random_states)} ranks, this run has {distributed.ranks()}; "
            "resume with the same number"
        )
    loaded, state = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if loaded is None:
        raise UserError(f"checkpoint {checkpoint} could not be read")
    path = checkpoint / f"random-rank-{distributed.rank()}.pt"
    _restore_random_state(torch.load(path, weights_only=True))
    return state


def _random_state() -> dict:
    numpy_state = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]),
        "python": random.getstate(),
    }


def _restore_random_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
