"""TensorBoard and Weights & Biases: the metrics of metrics.jsonl, for their viewers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.files import write_text

TAGS = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "lr": "train/lr",
    "epoch": "train/epoch",
    "validation_loss": "validation/loss",
    "validation_top1": "validation/top1",
    "zero_shot_top1": "zero_shot/top1",
    "zero_shot_top5": "zero_shot/top5",
    "zero_shot_mean_per_class": "zero_shot/mean_per_class",
    "terms": "batch/terms",
    "tokens": "batch/tokens",
    "images": "batch/images",
    "fill": "batch/fill",
    "seconds": "speed/seconds",
    "supervised_tokens_per_second": "speed/supervised_tokens_per_second",
    "tokens_per_second": "speed/tokens_per_second",
    "images_per_second": "speed/images_per_second",
    "mfu": "speed/mfu",
    "data_wait": "speed/data_wait",
    "memory": "memory/peak_bytes",
}
"""Field of metrics.jsonl -> name in a tracker; the norms of modules are `grad_norm/NAME`."""


class Tracker(Protocol):
    """Where scalars are logged by step."""

    def log(self, step: int, scalars: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def check_installed(names: list[str]) -> None:
    """Check that the trackers' packages are installed, without importing them.

    Raises:
        UserError: a package is missing.
    """
    require(*names)


def open_trackers(names: Sequence[str], run_dir: Path, config: dict[str, Any], done: int) -> list[Tracker]:
    """The trackers of these names, for rank 0.

    Args:
        config: values of the run config, to be shown.
        done: steps done. What was logged of later steps, before a resume, is not shown twice.

    Raises:
        UserError: Weights & Biases cannot start a run.
    """
    return [OPEN[name](run_dir, config, done) for name in names]


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """The scalars of a row of metrics.jsonl, by name in a tracker."""
    found = {tag: row[field] for field, tag in TAGS.items() if row.get(field) is not None}
    return found | {f"grad_norm/{name}": norm for name, norm in row.get("grad_norms", {}).items()}


class TensorBoard:
    """Event files in `tensorboard/` of the run directory."""

    def __init__(self, run_dir: Path, config: dict[str, Any], done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=done + 1)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()  # a killed run resumes from its checkpoint and does not repeat earlier steps

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run in the project `mmchat`, with files in `wandb/` of the run directory. WANDB_MODE, WANDB_ENTITY etc. apply.

    A resumed run keeps its id. W&B ignores steps that it already has, so the first values of repeated steps stay.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any], done: int) -> None:
        import wandb

        try:
            self._run = wandb.init(
                dir=run_dir,
                project="mmchat",
                name=run_dir.name,
                config=config,
                id=_stable_id(run_dir / "wandb" / "run-id"),
                resume="allow",
            )
        except wandb.Error as error:
            raise UserError(
                f"trackers: Weights & Biases cannot start a run: {error}; log in (`wandb login`), set "
                "WANDB_MODE=offline, or take wandb out of trackers"
            ) from None

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def close(self) -> None:
        self._run.finish()


def _stable_id(path: Path) -> str:
    if not path.exists():
        write_text(path, uuid4().hex)
    return path.read_text(encoding="utf-8")


OPEN = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
