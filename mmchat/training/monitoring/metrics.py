"""What a run measures of itself: `metrics.jsonl` and `environment.json`."""

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

from mmchat.files import write_json, write_text
from mmchat.training.distributed import collectives
from mmchat.training.monitoring.peak_flops import Peak

PACKAGES = ("mmchat", "torch", "transformers", "deepspeed", "tokenizers", "safetensors", "numpy", "pillow")


class MetricsLog:
    """One JSON line per step or validation. After a resume, lines of steps that are run again are dropped."""

    def __init__(self, path: Path, first_step: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _step(line) <= first_step]
        write_text(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:  # the last line of a killed run may be cut off
        return float("inf")


class Meter:
    """Rates over the last steps, of all ranks together, and the share of this rank's time spent waiting for data.

    peak: FLOP/s that all ranks could reach together.
    """

    def __init__(self, peak: float, window: int = 20) -> None:
        self._peak = peak
        self._steps: deque[dict[str, float | None]] = deque(maxlen=window)
        self._start = self._ready = time.perf_counter()

    def data_ready(self) -> None:
        self._ready = time.perf_counter()

    def step_done(self, terms: int, tokens: int, images: int, operations: int | None) -> dict[str, float | None]:
        """The fields of metrics.jsonl that depend on the clock. `mfu` is None where the operations are not known."""
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
        """Leave out what happened since the last step (validation, checkpoints)."""
        self._start = self._ready = time.perf_counter()


def peak_memory() -> int:
    """Bytes: the most that torch held on this rank's GPU, or without one the process's largest resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def write_environment(path: Path, peak: Peak) -> None:
    """Versions and hardware that the figures of this run belong to."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    environment = {
        "packages": {name: version(name) for name in PACKAGES},
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": cuda or f"cpu, {torch.get_num_threads()} threads",
        "ranks": collectives.ranks(),
        "peak_tflops_all_ranks": round(peak.flops / 1e12, 4),
        "peak_source": peak.source,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(path, environment)
