"""Load a ZeRO checkpoint on another number of ranks, through DeepSpeed's universal checkpoints.

DeepSpeed's converter writes one file per parameter and moment; every rank then reads its shard of each. The converted
checkpoint serves one start only. It is written next to the original, on the disk that all nodes share, and removed
when all ranks have loaded it. If the run is killed meanwhile, the next save or resume removes it.
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

from mmchat.errors import SharedError, counted
from mmchat.files import format_megabytes, free_bytes
from mmchat.training.checkpoints.storage import read_manifest, remove_leftovers, weights_only_loading
from mmchat.training.deepspeed_internals import convert_to_universal, wrapped_optimizer
from mmchat.training.distributed import collectives, process_group


def needs_resharding(checkpoint: Path) -> bool:
    """Whether ZeRO sharded the checkpoint for another number of ranks than this run has.

    If so, the engine that loads it must be built with `load_universal`.
    """
    written = read_manifest(checkpoint)
    return written.zero_stage > 0 and written.ranks != process_group.world_size()


def load_resharded(engine: deepspeed.DeepSpeedEngine, checkpoint: Path) -> dict[str, Any]:
    """Restore trained weights, moments and learning rate schedule. All ranks call this.

    Frozen weights are not included: the model already has those that the run started from.

    Returns:
        The client state that was saved.

    Raises:
        SharedError: the conversion failed, for example because the disk is full; the checkpoint is intact.
    """
    optimizer = wrapped_optimizer(engine)
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    with _converted(checkpoint) as folder:
        _, state = engine.load_checkpoint(str(folder), tag=checkpoint.name)
    # Under ZeRO 3 DeepSpeed 0.19.8 gives all groups the learning rate and decay of the first, and one shared step
    # counter, which would then be incremented once per group.
    for group, values, lr in zip(optimizer.param_groups, settings, engine.lr_scheduler.get_last_lr(), strict=True):
        group.update(values, lr=lr)
    for moments in optimizer.state.values():
        moments["step"] = moments["step"].clone()
    return state


@contextmanager
def _converted(checkpoint: Path) -> Iterator[Path]:
    """A folder that contains the converted checkpoint, under its original name."""
    first = process_group.rank() == 0
    if first:
        remove_leftovers(checkpoint.parent)
    # A converter that outlived its run may still be writing when the next one starts; hence a unique name.
    folder = checkpoint.with_name(f".{checkpoint.name}.universal-{collectives.all_gather([os.getpid()])[0]}")
    try:
        _convert(checkpoint, folder / checkpoint.name)
        yield folder
        collectives.barrier()
    finally:
        if first:
            shutil.rmtree(folder, ignore_errors=True)


def _convert(checkpoint: Path, out: Path) -> None:
    """Run the converter on rank 0; the other ranks wait in many short collectives, since a long one would time out."""
    with tempfile.TemporaryFile("w+") as stderr:
        process = _start(checkpoint, out, stderr) if process_group.rank() == 0 else None
        try:
            while not _on_any_rank(process is not None and process.poll() is not None):
                time.sleep(0.2)
        finally:
            if process:
                process.kill()
        stderr.seek(0)
        lines = stderr.read().strip().splitlines()
        failures = [(process.returncode, *lines[-1:])] if process and process.returncode else []
    for status, *last_line in collectives.all_gather(failures):
        written = read_manifest(checkpoint)
        size = sum(count for count, _ in written.files.values())
        raise SharedError(
            f"{checkpoint} was written by {counted(written.ranks, 'rank')} and could not be converted for "
            f"{process_group.world_size()}: the converter ended with exit status {status}, {' '.join(last_line)!r}. It "
            f"needs about {format_megabytes(2 * size)} in {checkpoint.parent} for a while, and "
            f"{format_megabytes(free_bytes(checkpoint))} are free. The checkpoint is intact: make room, or resume with "
            f"{counted(written.ranks, 'rank')}"
        )


def _on_any_rank(condition: bool) -> bool:
    return collectives.all_reduce(torch.tensor([int(condition)])).item() > 0


def _start(checkpoint: Path, out: Path, stderr: IO[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", __name__, str(checkpoint), str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)


def main(checkpoint: str, out: str) -> None:
    """The converter process."""
    with weights_only_loading():
        convert_to_universal(Path(checkpoint), Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
