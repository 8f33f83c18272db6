"""`ray_engine`: a Ray Data job answers the items, on one machine or on many.

The items that are left are first written to a folder next to the journal, which all machines must see: Ray Data splits
what is stored, not a stream. One actor per rank opens the model; Ray starts it again if it dies, and repeats its
batches. This process writes the journal, as with every engine.
"""

import logging
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.inference.jobs.items import Item, Outcome, Task, failure
from mmchat.inference.jobs.job import Engine
from mmchat.inference.jobs.workers import threads_for

if TYPE_CHECKING:
    from mmchat.inference.generator import Generator as Model

SLOTS_PER_BATCH = 8
"""Items of a batch, in slots. A model idles at the end of a batch, and a death repeats all of it."""


def ray_engine(open_model: Callable[[], "Model"], task: Task, slots: int, ranks: int, journal: Path) -> Engine:
    """An engine whose workers are Ray actors.

    The cluster is that of `RAY_ADDRESS`, or one that runs on this machine, or a new one of this machine alone.

    Args:
        open_model: Opens the model in an actor; pickled, as `task` is.
        task: What to ask it.
        slots: Items in one model at a time.
        ranks: Number of actors.
        journal: The items are kept next to it while the job runs.

    Raises:
        UserError: Ray is not installed.
    """
    require("ray", "pyarrow")
    batch = SLOTS_PER_BATCH * slots

    def answer(items: Iterable[Item]) -> Generator[tuple[Item, Outcome], None, None]:
        folder = journal.absolute().with_name(f".{journal.name}.items")
        shutil.rmtree(folder, ignore_errors=True)  # of a job that was killed
        try:
            if files := _store(items, folder, batch):
                arguments = (open_model, task, slots, str(Path.cwd()))
                yield from _answer(files, folder, arguments, batch, ranks)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return answer


def _store(items: Iterable[Item], folder: Path, batch: int) -> int:
    """Write items as parquet files of one batch each. Returns the number of files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream, files = iter(items), 0
    while rows := [pickle.dumps(item) for item in islice(stream, batch)]:
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"item": pa.array(rows, pa.binary())}), folder / f"{files:08}.parquet")
        files += 1
    return files


def _answer(
    files: int, folder: Path, arguments: tuple, batch: int, ranks: int
) -> Generator[tuple[Item, Outcome], None, None]:
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"ray\.data")
    ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        resources = ray.cluster_resources()
        # Listing and reading files takes a CPU. Ray would wait for it forever if the actors had them all.
        cpus = min(1.0, max(resources.get("CPU", 0) - 1, 0) / ranks)
        stored = ray.data.read_parquet(str(folder), override_num_blocks=files)
        answered = stored.map_batches(
            _Actor,
            fn_constructor_args=arguments,
            batch_size=batch,
            compute=ray.data.ActorPoolStrategy(size=ranks),
            num_cpus=cpus,
            num_gpus=1 if resources.get("GPU") else None,
        )
        for row in answered.iter_rows():
            yield pickle.loads(row["item"]), pickle.loads(row["outcome"])
    except ray.exceptions.RayError as error:
        raise _cause(error) from None
    finally:
        ray.shutdown()


def _cause(error: Exception) -> Exception:
    """The mistake of the user behind an error of Ray, if there is one."""
    text = str(error)
    marker = f"{UserError.__name__}: "
    return UserError(text.rpartition(marker)[2].strip().splitlines()[0]) if marker in text else error


class _Actor:
    """A process with a model."""

    def __init__(self, open_model: Callable[[], "Model"], task: Task, slots: int, folder: str) -> None:
        with suppress(OSError):  # on another machine
            os.chdir(folder)  # relative paths are those of the command
        self._model, self._task = open_model(), task
        self._threads = ThreadPoolExecutor(threads_for(slots))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        outcomes = self._threads.map(self._answer, batch["item"])
        return {"item": batch["item"], "outcome": [pickle.dumps(outcome) for outcome in outcomes]}

    def _answer(self, item: bytes) -> Outcome:
        try:
            return self._task(self._model, pickle.loads(item))
        except UserError as error:
            return failure(error)
