"""Watches one variant from inside its process: what each step took and gave, and the memory of all of them."""

import os
import resource
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from side_by_side.memory_by_kind import MemoryByKind


class Recorder:
    """Made after the imports and before the first weight: memory counts from here on.

    On a GPU memory is what torch held at most during the steps. On a CPU it is the largest resident set during the
    steps less the one of now; what opening a model takes for a moment does not count. Data workers are counted apart,
    with what they alone hold.

    Seconds from the start of the process to `begin` are `ready`, imports of both variants included.
    """

    def __init__(self, kinds: MemoryByKind | None = None) -> None:
        self._cuda = torch.cuda.is_available()
        self._resident_before = psutil.Process().memory_info().rss
        self._clocks, self._workers = _clocks(), 0
        self._ready, self._waited = 0.0, 0.0
        self._kinds = kinds
        self.steps: list[dict[str, Any]] = []

    def begin(self, model: torch.nn.Module) -> None:
        """Model and optimizer are there; the first step follows."""
        self._ready = time.time() - psutil.Process().create_time()
        if self._kinds:
            self._kinds.begin(model)
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back (man 5 proc)
        self._clocks = _clocks()

    def data_ready(self) -> None:
        """The next step's samples are there: what has passed since the last step was spent waiting for them."""
        self._waited = time.perf_counter() - self._clocks["seconds"]

    def step(self, **given: Any) -> None:
        """A step is done; `given`: its loss and gradient norms, and what else the variant knows of it."""
        if self._cuda:
            torch.cuda.synchronize()
        now = _clocks()
        took = {name: now[name] - before for name, before in self._clocks.items()}
        self.steps.append({**took, "waited": self._waited, **given})
        workers = sum(child.memory_full_info().uss for child in psutil.Process().children())
        self._workers = max(self._workers, workers)
        self._clocks = _clocks()

    def result(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "ready": self._ready,
            "memory": torch.cuda.max_memory_allocated() if self._cuda else high_water() - self._resident_before,
            "memory_of_workers": self._workers,
            "kinds": self._kinds.held if self._kinds else None,
            "threads": torch.get_num_threads(),
            "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(SHOWN)},
        }


def _clocks() -> dict[str, float]:
    """Seconds: of the wall, of CPU by this process without its children, and of these in the kernel (page faults)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": time.perf_counter(), "cpu_seconds": cpu, "kernel_seconds": usage.ru_stime}


SHOWN = ("GLIBC_TUNABLES", "MALLOC_", "OMP_", "MKL_", "KMP_", "LD_PRELOAD", "CUDA_", "PYTORCH_")


def high_water() -> int:
    """VmHWM in bytes; getrusage would add what the process was before it became Python."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
