"""Log files, trackers and terminal output of a run. Rank 0 writes; every rank learns when the run must stop."""

from pathlib import Path
from typing import Any

from rich.console import Console

from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Rejected
from mmchat.errors import SharedError
from mmchat.training.dataloader import TrainingDataLoader
from mmchat.training.distributed import process_group
from mmchat.training.distributed.siblings import resume_command
from mmchat.training.monitoring.metrics import Meter, MetricsLog
from mmchat.training.monitoring.nan_guard import IncidentLog, describe_incident
from mmchat.training.monitoring.peak_flops import Peak
from mmchat.training.monitoring.trackers import Tracker, scalars
from mmchat.training.train_step import StepResult


class RunLogger:
    """Writes `metrics.jsonl`, `incidents.jsonl`, `quarantine.jsonl`, trackers and terminal output.

    A context manager, which closes the trackers.

    Args:
        run_dir: where the files are written.
        trackers: of rank 0.
        peak: denominator of MFU.
        done: steps done before, by the run that is resumed.
    """

    def __init__(
        self,
        run_dir: Path,
        trackers: list[Tracker],
        dataloader: TrainingDataLoader,
        quarantine: Quarantine,
        console: Console,
        peak: Peak,
        done: int,
    ) -> None:
        self.run_dir, self.dataloader, self.quarantine, self.console = run_dir, dataloader, quarantine, console
        self.meter = Meter(peak.flops)
        first = process_group.rank() == 0
        self._metrics = MetricsLog(run_dir / "metrics.jsonl", done) if first else None
        self._trackers = trackers
        self._incidents = IncidentLog(run_dir / "incidents.jsonl", done) if first else None

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, *_: Any) -> None:
        for tracker in self._trackers:
            tracker.close()

    def log_step(self, step: int, result: StepResult) -> str:
        """Log a step.

        Returns:
            A note for the progress bar.

        Raises:
            SharedError: something was wrong with the step, and the config says to stop in this case.
        """
        counts = result.counts
        rates = self.meter.step_done(counts.terms, counts.tokens, counts.images, result.operations)
        for rejected in result.rejected:
            self.quarantine.add(rejected)
        ids = self.dataloader.ids(step, result.rejected) if self._metrics or result.incident else []
        if self._metrics:
            self._write(
                step=step,
                **_loss_fields(result),
                lr=result.lr,
                epoch=round(self.dataloader.order.epoch(step), 4),
                terms=counts.terms,
                tokens=counts.tokens,
                images=counts.images,
                cut=counts.cut,
                fill=round(counts.tokens / counts.positions, 4),
                operations=result.operations,
                ids=ids,
                memory=result.memory,
                **rates,
            )
        if result.incident:
            if self._incidents:
                self._incidents.write(step, result.incident, ids)
            self._report_incident(step, result, ids)
        return _note(result.loss, rates, len(self.quarantine))

    def log_evaluation(self, step: int, figures: dict[str, float], rejected: list[Rejected]) -> None:
        """Log metrics of held-out data.

        Raises:
            UserError: a sample could not be used and `on_bad_sample` is "stop".
        """
        for item in rejected:
            self.quarantine.add(item)
        if self._metrics:
            self._write(step=step, **figures)

    def log_stop(self, status: int, step: int, saved: Path) -> None:
        """Print how to resume after a signal."""
        name = {130: "interrupted", 143: "terminated"}[status]
        command = resume_command(self.run_dir)
        self.console.print(
            f"{name}: stopped after step {step} of {self.dataloader.total}, saved {saved}\n  resume with: {command}",
        )

    def _write(self, **row: Any) -> None:
        self._metrics.write(**row)
        for tracker in self._trackers:
            tracker.log(row["step"], scalars(row))

    def _report_incident(self, step: int, result: StepResult, ids: list[str]) -> None:
        message = describe_incident(step, result.incident, ids, self.run_dir / "incidents.jsonl")
        if result.incident.action == "stop":
            raise SharedError(
                f"{message}\n  to see them, run `mmchat replay {self.run_dir} --step {step}`; then fix or remove the "
                "bad samples, or skip such steps with --monitoring.stability.on_nan skip (or on_spike), and resume "
                "from the newest checkpoint with --resume"
            )
        self.console.print(message, style="yellow")


def _loss_fields(result: StepResult) -> dict[str, Any]:
    """Loss and gradient norms for metrics.jsonl; a skipped step has none, so that readers of `loss` do not see it."""
    if result.taken:
        return {"loss": result.loss, "grad_norm": result.grad_norm, "grad_norms": result.grad_norms}
    return {"skipped": result.incident.reason}


def _note(loss: float, rates: dict[str, float | None], left_out: int) -> str:
    note = f"loss {loss:.4f}  {rates['tokens_per_second']:,.0f} tokens/s"
    note += "" if rates["mfu"] is None else f"  MFU {rates['mfu']:.0%}"
    note += f"  wait {rates['data_wait']:.0%}"
    return note + (f"  {left_out} left out" if left_out else "")
