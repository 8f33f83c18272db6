"""ZeRO's shards, cut for one number of ranks, loaded by another: DeepSpeed's universal checkpoints.

DeepSpeed's converter makes a file of each parameter and moment, of which every rank then takes its share. That form
serves one start only. It lies beside the checkpoint on the disk that all nodes share and is removed when all ranks
have loaded; a run that is killed meanwhile leaves it to the next save or resume to remove.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import deepspeed
import torch

from mmchat.errors import SharedError
from mmchat.training.checkpoints.storage import read_manifest, remove_leftovers, weights_only_loading
from mmchat.training.deepspeed_internals import convert_to_universal, wrapped_optimizer
from mmchat.training.distributed import collectives


def needs_resharding(checkpoint: Path) -> bool:
    """Whether this run has other ranks than the one that wrote the checkpoint, and ZeRO had cut it up.

    The engine that loads it must then be built with `load_universal`.
    """
    written = read_manifest(checkpoint)
    return written.zero_stage > 0 and written.ranks != collectives.ranks()


def load_resharded(engine: deepspeed.DeepSpeedEngine, checkpoint: Path) -> dict[str, Any]:
    """Restore trained weights, moments and schedule; returns the client's state. All ranks call this.

    Frozen weights are not part of it: they are the ones that the run started from.

    Raises:
        SharedError: there was no room for the conversion; the checkpoint is intact.
    """
    optimizer = wrapped_optimizer(engine)
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    with _converted(checkpoint) as folder:
        _, state = engine.load_checkpoint(str(folder), tag=checkpoint.name)
    # Under ZeRO 3 DeepSpeed 0.19.8 gives all groups the first one's rate and decay, and one counter of steps, which
    # would then be counted once for each of them.
    for group, values, lr in zip(optimizer.param_groups, own, engine.lr_scheduler.get_last_lr(), strict=True):
        group.update(values, lr=lr)
    for moments in optimizer.state.values():
        moments["step"] = moments["step"].clone()
    return state


@contextmanager
def _converted(checkpoint: Path) -> Iterator[Path]:
    """A folder that holds the checkpoint in universal form, under its own name."""
    first = collectives.rank() == 0
    if first:
        remove_leftovers(checkpoint.parent)
    # A converter that outlived its run may still be writing when the next one starts; hence a name of its own.
    folder = checkpoint.with_name(f".{checkpoint.name}.universal-{collectives.all_gather([os.getpid()])[0]}")
    try:
        _convert(checkpoint, folder / checkpoint.name)
        yield folder
        collectives.barrier()
    finally:
        if first:
            shutil.rmtree(folder, ignore_errors=True)


def _convert(checkpoint: Path, out: Path) -> None:
    """Run the converter on rank 0; the others wait in many short collectives, since a long one would time out."""
    with tempfile.TemporaryFile("w+") as said:
        process = _start(checkpoint, out, said) if collectives.rank() == 0 else None
        try:
            while not _on_any_rank(process is not None and process.poll() is not None):
                time.sleep(0.2)
        finally:
            if process:
                process.kill()
        said.seek(0)
        lines = said.read().strip().splitlines()
        failures = [(process.returncode, *lines[-1:])] if process and process.returncode else []
    for status, *last_words in collectives.all_gather(failures):
        written = read_manifest(checkpoint)
        size = sum(count for count, _ in written.files.values())
        raise SharedError(
            f"{checkpoint} was written by {written.ranks} rank(s) and could not be converted for "
            f"{collectives.ranks()}: the converter ended with status {status}, {' '.join(last_words)!r}. It takes "
            f"about {2 * size / 1e6:,.1f} MB in {checkpoint.parent} for a while, and "
            f"{shutil.disk_usage(checkpoint).free / 1e6:,.1f} MB are free. The checkpoint is intact: make room, or "
            f"resume with {written.ranks} rank(s)"
        )


def _on_any_rank(true: bool) -> bool:
    return collectives.all_reduce(torch.tensor([int(true)])).item() > 0


def _start(checkpoint: Path, out: Path, said: IO[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", __name__, str(checkpoint), str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)


def main(checkpoint: str, out: str) -> None:
    """The converting process."""
    with weights_only_loading():
        convert_to_universal(Path(checkpoint), Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
