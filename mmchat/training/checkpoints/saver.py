"""Checkpoints: written aside, renamed when complete, pointed at last. A half-written one is never picked up."""

import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import deepspeed
import torch

from mmchat.errors import SharedError
from mmchat.files import replace_directory, write_json, write_text
from mmchat.training.checkpoints.reshard import load_resharded, needs_resharding
from mmchat.training.checkpoints.rng_state import restore_rng_state, rng_state, seed_all
from mmchat.training.checkpoints.storage import (
    MANIFEST,
    ChecksummedFiles,
    Manifest,
    find_damage,
    read_manifest,
    remove_leftovers,
)
from mmchat.training.config import CheckpointConfig
from mmchat.training.deepspeed_internals import set_checkpoint_engine
from mmchat.training.distributed import collectives
from mmchat.training.optim.ema import WeightAverage

POINTER = "latest"


class CheckpointSaver:
    """Writes a run's checkpoints, one at a time. All ranks make it, use it and leave its `with` alike.

    With `checkpoint.asynchronous` a save returns when the state is copied in memory; a thread on each rank writes it.
    Its error comes up at the next save, or at the end of the `with`.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        directory: Path,
        config: CheckpointConfig,
        tell: Callable[[str], None],
        average: WeightAverage | None = None,
    ) -> None:
        """`tell` is given the error of a save under which the run itself fell to another one."""
        self._engine, self._directory, self._config, self._tell = engine, directory, config, tell
        self._average = average
        self._pending: Future[None] | None = None
        # The threads talk over connections of their own: their words and the loop's come in no order.
        self._group = collectives.background_group() if config.asynchronous else None

    def save(self, step: int, at_once: bool = False, **state: Any) -> Path:
        """Model, optimizer, schedule and every rank's random state after `step` steps; all ranks call this.

        The position in the data is the step itself (`mmchat.data.order`). `state` comes back from `load`.
        at_once: return when it is written, whatever the config says.

        Raises:
            SharedError: it, or the one before, could not be written; what was there before is intact.
        """
        self.wait()
        later = self._config.asynchronous and not at_once
        aside = self._directory / f".step-{step:08d}.partial"
        final = self._directory / f"step-{step:08d}"
        files = self._collect(aside, ChecksummedFiles(later), {"step": step, **state})
        if later:
            self._pending = _in_background(partial(self._complete, files, aside, final, self._group))
        else:
            self._complete(files, aside, final)
        return final

    def wait(self) -> None:
        """Until the save that is under way, if any, is complete.

        Raises:
            SharedError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> "CheckpointSaver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except SharedError as error:
            if kind is None:
                raise
            self._tell(str(error))

    def _collect(self, aside: Path, files: ChecksummedFiles, state: dict[str, Any]) -> ChecksummedFiles:
        """Have DeepSpeed hand everything over to `files`."""
        if collectives.rank() == 0:
            remove_leftovers(self._directory)
            self._directory.mkdir(parents=True, exist_ok=True)
        collectives.barrier()
        set_checkpoint_engine(self._engine, files)
        # DeepSpeed's own `latest` file is not replaced atomically, hence our pointer.
        try:
            self._engine.save_checkpoint(str(self._directory), tag=aside.name, client_state=state, save_latest=False)
        except OSError as error:
            # Under ZeRO rank 0 copies a script of DeepSpeed's as well; the others wait in the barrier behind that.
            files.error = files.error or error
            collectives.barrier()
        files.save(rng_state(), str(aside / f"random-rank-{collectives.rank()}.pt"))
        if self._average:
            self._average.save(files, aside)
        return files

    def _complete(
        self, files: ChecksummedFiles, aside: Path, final: Path, group: collectives.Group | None = None
    ) -> None:
        """Write what is still in memory; if no rank failed, make `aside` the newest checkpoint."""
        files.write_kept()
        of_all_ranks = collectives.all_gather([(files.written, files.asked, files.error)], group)
        problems = []
        if collectives.rank() == 0:
            manifest = Manifest(
                collectives.ranks(),
                self._engine.zero_optimization_stage(),
                {name: told for written, *_ in of_all_ranks for name, told in written.items()},
            )
            error = next((error for *_, error in of_all_ranks if error), None)
            error = error or _put_in_place(aside, final, manifest, self._config.keep)
            if error:
                shutil.rmtree(aside, ignore_errors=True)
                problems = [_not_written(final, error, sum(asked for _, asked, _ in of_all_ranks))]
        for problem in collectives.all_gather(problems, group):
            raise SharedError(problem)


def _in_background(work: Callable[[], None]) -> Future[None]:
    """Unlike an executor's, the thread does not keep a rank alive that has crashed."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def _put_in_place(aside: Path, final: Path, manifest: Manifest, keep: int) -> OSError | None:
    """Make the written folder the newest checkpoint, on rank 0; returns the error that prevented it."""
    directory = final.parent
    try:
        write_json(aside / MANIFEST, asdict(manifest))
        replace_directory(aside, final)
        write_text(directory / POINTER, final.name)
    except OSError as error:
        return error
    # Whatever is newer was damaged or given up when the run went on from an older one.
    there = sorted(directory.glob("step-*"))
    count = there.index(final) + 1
    for old in [*there[: max(0, count - keep)], *there[count:]]:
        shutil.rmtree(old)
    return None


def _not_written(final: Path, error: OSError, needed: int) -> str:
    free = shutil.disk_usage(final.parent).free
    kept = sorted(path.name for path in final.parent.glob("step-*"))
    missing = f", {(needed - free) / 1e6:,.1f} MB are missing" if needed > free else ""
    return (
        f"the checkpoint of step {int(final.name[5:])} could not be written to {final.parent}: {error.strerror}. "
        f"It takes about {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free{missing}. "
        "The unfinished one is removed; "
        + (f"{kept[-1]} is intact" if kept else "there is none before it")
        + ". Make room, then go on with --resume"
    )


def newest_checkpoint(directory: Path, tell: Callable[[str], None]) -> Path | None:
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
        problem = find_damage(checkpoint)
        if problem is None:
            return checkpoint
        tell(f"checkpoint {checkpoint} is damaged: {problem}" + (f"; trying {before.name}" if before else ""))
    raise SharedError(f"{directory} holds no undamaged checkpoint; name another run_dir to begin again")


def load_checkpoint(
    engine: deepspeed.DeepSpeedEngine, checkpoint: Path, seed: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Restore everything that `save` wrote; returns its `state` with `step`, the number of steps done.

    Where as many ranks wrote it, bit for bit; where it were others, up to rounding, and each rank's generators begin
    anew at a function of (seed, step, rank). `tell` is given a line about that.

    Raises:
        SharedError: it was written under another ZeRO stage, or there is no room to convert it for other ranks.
    """
    written = read_manifest(checkpoint)
    if written.zero_stage != engine.zero_optimization_stage():
        raise SharedError(
            f"{checkpoint} was written under ZeRO {written.zero_stage}, this run uses ZeRO "
            f"{engine.zero_optimization_stage()}; resume with zero_stage: {written.zero_stage}"
        )
    set_checkpoint_engine(engine, ChecksummedFiles())
    if needs_resharding(checkpoint):
        state = load_resharded(engine, checkpoint)
    else:
        _, state = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if written.ranks == collectives.ranks():
        path = checkpoint / f"random-rank-{collectives.rank()}.pt"
        restore_rng_state(torch.load(path, weights_only=True))
    else:
        seed_all(seed, state["step"], collectives.rank())
        tell(
            f"going on with {collectives.ranks()} rank(s) instead of {written.ranks}: the same up to rounding, "
            "except that dropout, where there is any, draws other numbers"
        )
    return state
