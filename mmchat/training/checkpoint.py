"""Checkpoints: written aside, renamed when complete, pointed at last. A half-written one is never picked up."""

import random
import shutil
from pathlib import Path

import deepspeed
import numpy as np
import torch

from mmchat.errors import UserError
from mmchat.files import write_text
from mmchat.training import distributed

POINTER = "latest"


def save(engine: deepspeed.DeepSpeedEngine, directory: Path, step: int, keep: int) -> Path:
    """Model, optimizer, schedule and every rank's random state after `step` steps; all ranks call this.

    The position in the data is the step itself (`mmchat.data.order`).
    """
    aside, final = directory / f".step-{step:08d}.partial", directory / f"step-{step:08d}"
    if distributed.rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
    distributed.barrier()
    # DeepSpeed's own `latest` file is not replaced atomically, hence the pointer below.
    engine.save_checkpoint(str(directory), tag=aside.name, client_state={"step": step}, save_latest=False)
    torch.save(_random_state(), aside / f"random-rank-{distributed.rank()}.pt")
    distributed.barrier()
    if distributed.rank() == 0:
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        write_text(directory / POINTER, final.name)
        for old in sorted(directory.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    distributed.barrier()
    return final


def latest(directory: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    pointer = directory / POINTER
    if not pointer.exists():
        return None
    found = directory / pointer.read_text(encoding="utf-8").strip()
    if not found.is_dir():
        raise UserError(f"{pointer} names {found.name}, which is not there; correct it to one of the folders beside it")
    return found


def load(engine: deepspeed.DeepSpeedEngine, checkpoint: Path) -> int:
    """Restore everything that `save` wrote; returns the number of steps done.

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
        raise UserError(f"checkpoint {checkpoint} could not be read; remove it and resume from the one before")
    path = checkpoint / f"random-rank-{distributed.rank()}.pt"
    _restore_random_state(torch.load(path, weights_only=True))
    return state["step"]


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
