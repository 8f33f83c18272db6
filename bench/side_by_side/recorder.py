"""Records time, losses and memory of one variant from inside its process."""

import os
import resource
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from side_by_side.memory_by_kind import MemoryByKind


class Recorder:
    """Records every step of a variant. Create it after the imports and before the model: memory is counted from there.

    On a GPU, memory is the peak of torch's allocator during the steps. On a CPU it is the peak resident set during the
    steps minus the resident set at construction; temporary memory while the model is opened does not count. Memory of
    data workers (unshared pages) is counted separately.

    `ready` is the time from the start of the process to `begin`, including the imports of both variants.
    """

    def __init__(self, kinds: MemoryByKind | None = None) -> None:
        self._cuda = torch.cuda.is_available()
        self._resident_before = psutil.Process().memory_info().rss
        self._clocks, self._workers = _clocks(), 0
        self._ready, self._waited = 0.0, 0.0
        self._kinds = kinds
        self.steps: list[dict[str, Any]] = []

    def begin(self, model: torch.nn.Module) -> None:
        """Call when model and optimizer are built, before the first step."""
        self._ready = time.time() - psutil.Process().create_time()
        if self._kinds:
            self._kinds.begin(model)
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM (man 5 proc)
        self._clocks = _clocks()

    def data_ready(self) -> None:
        """Call when the samples of the next step are available; the time since the last step was data wait."""
        self._waited = time.perf_counter() - self._clocks["seconds"]

    def step(self, **values: Any) -> None:
        """Call after each step. values: loss, gradient norms and other figures of the step."""
        if self._cuda:
            torch.cuda.synchronize()
        now = _clocks()
        elapsed = {name: now[name] - before for name, before in self._clocks.items()}
        self.steps.append({**elapsed, "waited": self._waited, **values})
        workers = sum(child.memory_full_info().uss for child in psutil.Process().children())
        self._workers = max(self._workers, workers)
        self._clocks = _clocks()

    def result(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "ready": self._ready,
            "memory": torch.cuda.max_memory_allocated() if self._cuda else high_water() - self._resident_before,
            "memory_of_workers": self._workers,
            "kinds": self._kinds.sizes if self._kinds else None,
            "threads": torch.get_num_threads(),
            "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(VARIABLES)},
        }


def _clocks() -> dict[str, float]:
    """Seconds: wall time, CPU time of this process without children, and its part in the kernel (page faults)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": time.perf_counter(), "cpu_seconds": cpu, "kernel_seconds": usage.ru_stime}


VARIABLES = ("GLIBC_TUNABLES", "MALLOC_", "OMP_", "MKL_", "KMP_", "LD_PRELOAD", "CUDA_", "PYTORCH_")


def high_water() -> int:
    """Peak resident set (VmHWM) in bytes. getrusage would include the process before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
