"""Metrics of a run: `metrics.jsonl`, `environment.json`, throughput and peak memory."""

import json
import platform
import resource
import sys
import time
from collections import deque
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mmchat.extras import installed
from mmchat.files import as_json_line, split_complete_lines, write_bytes, write_json, writing
from mmchat.training.distributed import process_group
from mmchat.training.monitoring.peak_flops import Peak

PACKAGES = ("mmchat", "torch", "transformers", "peft", "deepspeed", "tokenizers", "safetensors", "numpy", "pillow")
OPTIONAL_PACKAGES = {"bitsandbytes": "bitsandbytes", "liger_kernel": "liger-kernel"}
"""Module -> distribution, recorded where it is installed: kernels of these change results, too."""


class MetricsLog:
    """A JSON Lines file with one row per step or evaluation.

    Args:
        done: steps done so far. Rows of later steps are dropped, because a resumed run repeats those steps.
    """

    def __init__(self, path: Path, done: int) -> None:
        lines, _ = split_complete_lines(path) if path.exists() else ([], b"")
        write_bytes(path, b"".join(line + b"\n" for line in lines if json.loads(line)["step"] <= done))
        self._path = path
        self._file = path.open("ab")

    def write(self, **row: Any) -> None:
        """Append a row. Raises CannotWriteError."""
        with writing(self._path):
            self._file.write(as_json_line(row))
            self._file.flush()


class Meter:
    """Throughput of all ranks over the last steps, and the share of this rank's time spent waiting for data.

    Args:
        peak: FLOP/s that all ranks together can reach.
        window: number of steps to average over.
    """

    def __init__(self, peak: float, window: int = 20) -> None:
        self._peak = peak
        self._steps: deque[dict[str, float | None]] = deque(maxlen=window)
        self._start = self._ready = time.perf_counter()

    def data_ready(self) -> None:
        """Call when the batches of a step have arrived."""
        self._ready = time.perf_counter()

    def step_done(self, terms: int, tokens: int, images: int, operations: int | None) -> dict[str, float | None]:
        """Call after a step.

        Args:
            operations: floating-point operations of the step; None if unknown.

        Returns:
            The fields of metrics.jsonl that depend on time. `mfu` is None if the operations are unknown.
        """
        now = time.perf_counter()
        times = {"seconds": now - self._start, "waited": self._ready - self._start}
        self._steps.append({**times, "terms": terms, "tokens": tokens, "images": images, "operations": operations})
        self._start = now
        seconds = self._sum("seconds")
        return {
            "seconds": round(self._steps[-1]["seconds"], 4),
            "supervised_tokens_per_second": round(self._sum("terms") / seconds, 1),
            "tokens_per_second": round(self._sum("tokens") / seconds, 1),
            "images_per_second": round(self._sum("images") / seconds, 2),
            "mfu": None if operations is None else round(self._sum("operations") / seconds / self._peak, 4),
            "data_wait": round(self._sum("waited") / seconds, 4),
        }

    def _sum(self, name: str) -> float:
        return sum(step[name] for step in self._steps)

    def resume(self) -> None:
        """Restart the clock: time since the last step went into validation or checkpoints."""
        self._start = self._ready = time.perf_counter()


def peak_memory() -> int:
    """Bytes: torch's peak allocation on this rank's GPU, or without a GPU the process's peak resident set size."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _processor() -> str:
    """The CPU's name on Linux; elsewhere what Python knows."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def write_environment(path: Path, peak: Peak) -> None:
    """Write `environment.json`: package versions and hardware of this run."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    environment = {
        "packages": {name: version(name) for name in PACKAGES}
        | {name: version(name) for module, name in OPTIONAL_PACKAGES.items() if installed(module)},
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "device": cuda or f"cpu, {torch.get_num_threads()} threads",
        "ranks": process_group.world_size(),
        "peak_tflops_all_ranks": round(peak.flops / 1e12, 4),
        "peak_source": peak.source,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(path, environment)
