"""Directories of Megatron checkpoints: the file of each tensor-parallel rank.

Source: NVIDIA/Megatron-LM, megatron/training/checkpointing.py (`get_checkpoint_name`).
"""

import re
from pathlib import Path

from mmchat.errors import UserError

TRACKER = "latest_checkpointed_iteration.txt"
"""File beside the checkpoints of a run with the newest iteration, or "release"."""
FILE = "model_optim_rng.pt"


def rank_files(directory: Path) -> list[Path]:
    """The files of all tensor-parallel ranks, in order of rank; empty if it is no directory of Megatron.

    Args:
        directory: One checkpoint (`mp_rank_00/`, `mp_rank_01/`, ...), or the checkpoints of a run: the newest is used.

    Raises:
        UserError: The checkpoint is split over a pipeline, a rank is missing, or several checkpoints are candidates.
    """
    checkpoint = _checkpoint(directory)
    files = sorted(checkpoint.glob(f"mp_rank_*/{FILE}"), key=lambda file: (numbers_in(file), file))
    ranks = [file.parent.name for file in files]
    expected = [f"mp_rank_{number:02d}" for number in range(len(files))]
    if ranks != expected:
        raise UserError(
            f"{checkpoint} holds {', '.join(ranks)}, expected {', '.join(expected)}: all tensor-parallel ranks. Merge "
            "pipeline and expert parallel checkpoints with Megatron's own tools first"
        )
    return files


def numbers_in(file: Path) -> list[int]:
    """Numbers in the names of a file and its directory, as a sort key: rank 2 comes before rank 10."""
    return [int(number) for number in re.findall(r"\d+", f"{file.parent.name}/{file.name}")]


def _checkpoint(directory: Path) -> Path:
    tracker = directory / TRACKER
    if tracker.is_file():
        newest = tracker.read_text(encoding="utf-8").strip()
        return directory / (f"iter_{int(newest):07d}" if newest.isdecimal() else newest)
    found = sorted(directory.glob("iter_*"))
    if len(found) > 1:
        raise UserError(
            f"{directory} holds {len(found)} checkpoints and no {TRACKER}; name one of them, such as {found[-1]}"
        )
    return found[0] if found else directory
