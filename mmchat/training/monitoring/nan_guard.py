"""Steps that must not be taken: NaN or infinite losses and gradients, and sudden spikes.

A step is checked once, by its loss and gradient norm over all ranks, after the last backward and before the optimizer
changes weights or moments. So every rank decides the same, regardless of gradient accumulation.
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
"""Number of previous steps with whose median a step is compared."""
MIN_HISTORY = 10
"""Steps before spikes are detected."""
PATIENCE = 10
"""Consecutive skipped steps after which the run stops, because the samples are not the cause."""


@dataclass
class Incident:
    """What was wrong with a step, and what was done."""

    reason: str
    action: Literal["warn", "stop", "skip"]
    loss: float
    grad_norm: float

    @property
    def taken(self) -> bool:
        """Whether the optimizer took the step."""
        return self.action == "warn"


class NanGuard:
    """Checks every step: `begin`, `passes`, `end`.

    Its state is saved in checkpoints, so that a resumed run decides as an uninterrupted one would.
    """

    def __init__(self, config: StabilityConfig) -> None:
        self.config = config
        self.incident: Incident | None = None
        self._loss = 0.0
        self._history = {"loss": deque(maxlen=WINDOW), "gradient norm": deque(maxlen=WINDOW)}
        self._skipped_in_a_row = 0

    def begin(self, loss: float) -> None:
        """Set the step's loss, the mean over its terms on all ranks, before the optimizer's step."""
        self._loss, self.incident = loss, None

    def passes(self, grad_norm: float) -> bool:
        """Whether the optimizer may take the step."""
        self.incident = self._check({"loss": self._loss, "gradient norm": grad_norm})
        return self.incident is None or self.incident.taken

    def end(self, grad_norm: float) -> Incident | None:
        """The incident of this step, if any; an ordinary step is added to the history."""
        if self.incident and not self.incident.taken:
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= PATIENCE:
                self.incident.action = "stop"
                self.incident.reason += f"; {PATIENCE} steps in a row were skipped, so the cause is not their samples"
            return self.incident
        self._skipped_in_a_row = 0
        if self._loss:  # a step whose samples were all unusable has a loss of 0
            self._history["loss"].append(self._loss)
            self._history["gradient norm"].append(grad_norm)
        return self.incident

    def _check(self, values: dict[str, float]) -> Incident | None:
        for name, value in values.items():
            if not math.isfinite(value):
                return Incident(f"the {name} is {value}", self.config.on_nan, *values.values())
        factor = self.config.spike_factor
        for name, value in values.items():
            history = self._history[name]
            if factor and len(history) >= MIN_HISTORY and value > factor * median(history):
                ratio = value / median(history)
                reason = f"the {name} is {value:.4g}, {ratio:.1f} times the median of {len(history)} steps"
                return Incident(reason, self.config.on_spike, *values.values())
        return None

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, as plain values."""
        history = {name: list(values) for name, values in self._history.items()}
        return {"usual": history, "skipped_in_a_row": self._skipped_in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        for name, values in state["usual"].items():
            self._history[name].extend(values)
        self._skipped_in_a_row = state["skipped_in_a_row"]


class IncidentLog:
    """`incidents.jsonl`: one line per incident with the ids of its samples; created with the first incident."""

    def __init__(self, path: Path, done: int) -> None:
        self.path, self._done = path, done
        self._log = MetricsLog(path, done) if path.exists() else None

    def write(self, step: int, incident: Incident, ids: list[str]) -> None:
        """Append an incident."""
        self._log = self._log or MetricsLog(self.path, self._done)
        values = {"loss": incident.loss, "grad_norm": incident.grad_norm}
        self._log.write(step=step, reason=incident.reason, action=incident.action, **finite_or_text(values), ids=ids)


def finite_or_text(values: dict[str, float]) -> dict[str, float | str]:
    """Replace NaN and infinities, which JSON does not have, by text."""
    return {key: value if math.isfinite(value) else str(value) for key, value in values.items()}


def describe_incident(step: int, incident: Incident, ids: list[str], log: Path) -> str:
    """An incident as text for the user. `json.dumps` quotes ids, which may contain spaces."""
    shown = ", ".join(json.dumps(name, ensure_ascii=False) for name in ids[:16])
    shown += f" and {len(ids) - 16} more" if len(ids) > 16 else ""
    outcome = {"warn": "the step was taken", "skip": "the step was skipped", "stop": "the step was not taken"}
    return f"step {step}: {incident.reason}; {outcome[incident.action]}. Its samples: {shown} (all in {log})"
