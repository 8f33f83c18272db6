"""What a run writes about itself: `metrics.jsonl`, `environment.json`, the loss curve."""

import json
import platform
import sys
import time
from collections import deque
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mmchat.files import write_json, write_text

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
    """Rates over the last steps: supervised tokens per second, and the share of time spent waiting for data."""

    def __init__(self, window: int = 20) -> None:
        self._steps: deque[tuple[float, float, int]] = deque(maxlen=window)
        self._start = self._ready = time.perf_counter()

    def data_ready(self) -> None:
        self._ready = time.perf_counter()

    def step_done(self, supervised: int) -> dict[str, float]:
        now = time.perf_counter()
        self._steps.append((now - self._start, self._ready - self._start, supervised))
        self._start = now
        seconds, waited, tokens = map(sum, zip(*self._steps, strict=True))
        return {
            "seconds": round(self._steps[-1][0], 4),
            "supervised_tokens_per_second": round(tokens / seconds, 1),
            "data_wait": round(waited / seconds, 4),
        }

    def resume(self) -> None:
        """Leave out what happened since the last step (validation, checkpoints)."""
        self._start = self._ready = time.perf_counter()


def write_environment(path: Path, ranks: int, device: torch.device) -> None:
    """Versions and hardware that the figures of this run belong to."""
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    environment = {
        "packages": {name: version(name) for name in PACKAGES},
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": cuda or f"cpu, {torch.get_num_threads()} threads",
        "ranks": ranks,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(path, environment)


def plot_loss(metrics: list[dict[str, Any]], path: Path, title: str) -> None:
    """Training loss with its running mean, and validation loss where there is one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    train = [(row["step"], row["loss"]) for row in metrics if "loss" in row]
    validation = [(row["step"], row["validation_loss"]) for row in metrics if "validation_loss" in row]
    figure, axes = plt.subplots(figsize=(7, 4))
    if train:
        steps, losses = zip(*train, strict=True)
        mean, smooth = losses[0], []
        for loss in losses:
            mean += 0.05 * (loss - mean)
            smooth.append(mean)
        axes.plot(steps, losses, color="C0", alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth, color="C0", label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", color="C3", markersize=3, label="validation")
    axes.set(title=title, xlabel="optimizer step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
