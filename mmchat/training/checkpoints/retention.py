"""Which checkpoints a run has: the newest undamaged one is found, old ones are deleted."""

from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

from mmchat.errors import SharedError
from mmchat.training.checkpoints.storage import LATEST, find_damage, list_checkpoints


def newest_checkpoint(directory: Path, report: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint, or None if there is none at all. All ranks call this.

    The search starts at the checkpoint that `latest` names.

    Args:
        report: called with a line for each checkpoint that is skipped.

    Raises:
        SharedError: there are checkpoints, but all of them are damaged.
    """
    pointer = directory / LATEST
    if not pointer.exists():
        return None
    latest = directory / pointer.read_text(encoding="utf-8").strip()
    candidates = [path for path in reversed(list_checkpoints(directory)) if path.name <= latest.name]
    if latest not in candidates:
        report(f"{pointer} names {latest.name}, which does not exist")
    for checkpoint, older in zip(candidates, [*candidates[1:], None], strict=True):
        problem = find_damage(checkpoint)
        if problem is None:
            return checkpoint
        report(f"checkpoint {checkpoint} is damaged: {problem}" + (f"; trying {older.name}" if older else ""))
    raise SharedError(f"{directory} has no undamaged checkpoint; to start again, name another run_dir")


def delete_old_checkpoints(newest: Path, keep: int) -> None:
    """Keep the `keep` newest checkpoints beside and including `newest`, which was just written.

    Checkpoints of later steps go too: they were damaged, or abandoned when the run was resumed from an older one.
    """
    existing = list_checkpoints(newest.parent)
    count = existing.index(newest) + 1
    for old in [*existing[: max(0, count - keep)], *existing[count:]]:
        rmtree(old)
