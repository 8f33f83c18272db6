"""Steps that must not be taken: a loss or gradient that is no number, and sudden spikes.

A step is judged once, by its loss and gradient norm over all ranks, after the last backward and before the
optimizer touches weights or moments; so every rank judges alike, whatever the accumulation.
"""

import json
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from mmchat.training.config import StabilityConfig
from mmchat.training.monitoring.metrics import MetricsLog

WINDOW = 50
"""Steps taken last, with whose medians a step is compared."""
MIN_HISTORY = 10
"""Fewer steps than this are no measure of what is usual."""
PATIENCE = 10
"""Skipped steps in a row after which the run stops: then it is not the samples."""


@dataclass
class Incident:
    """Why a step was not ordinary, and what became of it."""

    reason: str
    action: Literal["warn", "stop", "skip"]
    loss: float
    grad_norm: float

    @property
    def taken(self) -> bool:
        return self.action == "warn"


class NanGuard:
    """Judges every step. Its memory belongs into checkpoints: a resumed run must judge as the whole one would."""

    def __init__(self, config: StabilityConfig) -> None:
        self.config = config
        self.incident: Incident | None = None
        self._loss = 0.0
        self._usual = {"loss": deque(maxlen=WINDOW), "gradient norm": deque(maxlen=WINDOW)}
        self._skipped_in_a_row = 0

    def begin(self, loss: float) -> None:
        """Tell the step's loss, mean over all its terms on all ranks, before the optimizer's turn."""
        self._loss, self.incident = loss, None

    def passes(self, grad_norm: float) -> bool:
        """Whether the optimizer may take the step."""
        self.incident = self._judge({"loss": self._loss, "gradient norm": grad_norm})
        return self.incident is None or self.incident.taken

    def end(self, grad_norm: float) -> Incident | None:
        """The incident of this step, if it was one; remembers what is usual."""
        if self.incident and not self.incident.taken:
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= PATIENCE:
                self.incident.action = "stop"
                self.incident.reason += f"; {PATIENCE} steps in a row were skipped, so the cause is not their samples"
            return self.incident
        self._skipped_in_a_row = 0
        if self._loss:  # a step that lost all its samples has a loss of 0 and says nothing
            self._usual["loss"].append(self._loss)
            self._usual["gradient norm"].append(grad_norm)
        return self.incident

    def _judge(self, values: dict[str, float]) -> Incident | None:
        for name, value in values.items():
            if not math.isfinite(value):
                return Incident(f"the {name} is {value}", self.config.on_nan, *values.values())
        factor = self.config.spike_factor
        for name, value in values.items():
            past = self._usual[name]
            if factor and len(past) >= MIN_HISTORY and value > factor * median(past):
                reason = f"the {name} is {value:.4g}, {value / median(past):.1f} times the median of {len(past)} steps"
                return Incident(reason, self.config.on_spike, *values.values())
        return None

    def state(self) -> dict[str, Any]:
        usual = {name: list(values) for name, values in self._usual.items()}
        return {"usual": usual, "skipped_in_a_row": self._skipped_in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        for name, values in state["usual"].items():
            self._usual[name].extend(values)
        self._skipped_in_a_row = state["skipped_in_a_row"]


class IncidentLog:
    """`incidents.jsonl`: one line an incident with the ids of its samples; the file exists once there is one."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path, self._first_step = path, first_step
        self._log = MetricsLog(path, first_step) if path.exists() else None

    def write(self, step: int, incident: Incident, ids: list[str]) -> None:
        self._log = self._log or MetricsLog(self.path, self._first_step)
        values = {"loss": incident.loss, "grad_norm": incident.grad_norm}
        self._log.write(step=step, reason=incident.reason, action=incident.action, **finite_or_text(values), ids=ids)


def finite_or_text(values: dict[str, float]) -> dict[str, float | str]:
    """JSON knows neither nan nor inf: they become words."""
    return {key: value if math.isfinite(value) else str(value) for key, value in values.items()}


def describe_incident(step: int, incident: Incident, ids: list[str], log: Path) -> str:
    """What a user reads about an incident. `json.dumps` quotes ids that hold spaces."""
    shown = ", ".join(json.dumps(name, ensure_ascii=False) for name in ids[:16])
    shown += f" and {len(ids) - 16} more" if len(ids) > 16 else ""
    done = {"warn": "the step was taken", "skip": "the step was skipped", "stop": "the step was not taken"}
    return f"step {step}: {incident.reason}; {done[incident.action]}. Its samples: {shown} (all in {log})"
