"""Checkpoints: written to a temporary folder, renamed when complete, and only then named by `latest`."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from shutil import rmtree
from threading import Thread
from typing import Any

import deepspeed

from mmchat.errors import SharedError
from mmchat.files import format_megabytes, free_bytes, replace_directory, write_json, write_text
from mmchat.training.checkpoints.retention import delete_old_checkpoints
from mmchat.training.checkpoints.rng_state import rng_state
from mmchat.training.checkpoints.storage import (
    LATEST,
    MANIFEST,
    ChecksummedFiles,
    Manifest,
    list_checkpoints,
    remove_leftovers,
    step_name,
    step_of,
)
from mmchat.training.config import CheckpointConfig
from mmchat.training.deepspeed_internals import set_checkpoint_engine
from mmchat.training.distributed import collectives, process_group
from mmchat.training.optim.ema import WeightAverage


class CheckpointSaver:
    """Writes a run's checkpoints, one at a time. A context manager; all ranks make the same calls.

    With `checkpoint.asynchronous` a save returns once the state is copied in memory, and a thread on each rank writes
    the copy. An error of that thread is raised by the next save or at the end of the `with`.

    Args:
        report: called with the error of a save if the `with` already ends with another exception.
        average: saved with every checkpoint.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        directory: Path,
        config: CheckpointConfig,
        report: Callable[[str], None],
        average: WeightAverage | None = None,
    ) -> None:
        self._engine, self._directory, self._config, self._report = engine, directory, config, report
        self._average = average
        self._pending: Future[None] | None = None
        # A group for the threads alone: their collectives and the loop's run in no fixed order.
        self._group = collectives.background_group() if config.asynchronous else None

    def save(self, step: int, at_once: bool = False, **state: Any) -> Path:
        """Save model, optimizer, schedule and the random state of every rank. All ranks call this.

        Args:
            step: optimizer steps done. The position in the data follows from it (`mmchat.data.order`).
            at_once: return when the checkpoint is written, even if saves are asynchronous.
            state: returned by `load_checkpoint`.

        Returns:
            The folder of the checkpoint.

        Raises:
            SharedError: this save, or the one before it, failed. Earlier checkpoints are intact.
        """
        self.wait()
        deferred = self._config.asynchronous and not at_once
        temporary = self._directory / f".{step_name(step)}.partial"
        final = self._directory / step_name(step)
        files = self._collect(temporary, ChecksummedFiles(deferred), {"step": step, **state})
        if deferred:
            self._pending = _in_background(partial(self._complete, files, temporary, final, self._group))
        else:
            self._complete(files, temporary, final)
        return final

    def wait(self) -> None:
        """Wait for the save in progress, if any.

        Raises:
            SharedError: it failed.
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
            self._report(str(error))

    def _collect(self, temporary: Path, files: ChecksummedFiles, state: dict[str, Any]) -> ChecksummedFiles:
        """Let DeepSpeed pass everything to `files`."""
        if process_group.rank() == 0:
            remove_leftovers(self._directory)
            self._directory.mkdir(parents=True, exist_ok=True)
        collectives.barrier()
        set_checkpoint_engine(self._engine, files)
        try:
            tag = temporary.name
            self._engine.save_checkpoint(str(self._directory), tag=tag, client_state=state, save_latest=False)
        except OSError as error:
            # Under ZeRO rank 0 also copies a script of DeepSpeed's; the other ranks wait in the barrier after it.
            files.error = files.error or error
            collectives.barrier()
        files.save(rng_state(), str(temporary / f"random-rank-{process_group.rank()}.pt"))
        if self._average:
            self._average.save(files, temporary)
        return files

    def _complete(
        self, files: ChecksummedFiles, temporary: Path, final: Path, group: collectives.Group | None = None
    ) -> None:
        """Write what is still in memory; if no rank failed, make this the newest checkpoint."""
        files.write_deferred()
        of_all_ranks = collectives.all_gather([(files.written, files.requested_bytes, files.error)], group)
        problems = []
        if process_group.rank() == 0:
            manifest = Manifest(
                process_group.world_size(),
                self._engine.zero_optimization_stage(),
                {name: entry for written, *_ in of_all_ranks for name, entry in written.items()},
            )
            error = next((error for *_, error in of_all_ranks if error), None)
            error = error or _publish(temporary, final, manifest, self._config.keep)
            if error:
                rmtree(temporary, ignore_errors=True)
                problems = [_failure_message(final, error, sum(size for _, size, _ in of_all_ranks))]
        for problem in collectives.all_gather(problems, group):
            raise SharedError(problem)


def _in_background(work: Callable[[], None]) -> Future[None]:
    """Run `work` in a daemon thread. Unlike an executor's thread, it does not keep a crashed rank alive."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def _publish(temporary: Path, final: Path, manifest: Manifest, keep: int) -> OSError | None:
    """Make the written folder the newest checkpoint, on rank 0; returns the error that prevented it."""
    directory = final.parent
    try:
        write_json(temporary / MANIFEST, asdict(manifest))
        replace_directory(temporary, final)
        write_text(directory / LATEST, final.name)
    except OSError as error:
        return error
    delete_old_checkpoints(final, keep)
    return None


def _failure_message(final: Path, error: OSError, needed: int) -> str:
    free = free_bytes(final.parent)
    kept = list_checkpoints(final.parent)
    missing = f", {format_megabytes(needed - free)} are missing" if needed > free else ""
    return (
        f"the checkpoint of step {step_of(final)} could not be written to {final.parent}: {error.strerror}. "
        f"It needs about {format_megabytes(needed)}, {format_megabytes(free)} are free{missing}. "
        "The incomplete checkpoint is removed; "
        + (f"{kept[-1].name} is intact" if kept else "there is no earlier one")
        + ". Make room, then resume with --resume"
    )
