"""Directories of Megatron's checkpoints: which file each rank of tensor parallelism wrote.

Source: NVIDIA/Megatron-LM, megatron/training/checkpointing.py (`get_checkpoint_name`).
"""

import re
from pathlib import Path

from mmchat.errors import UserError

TRACKER = "latest_checkpointed_iteration.txt"
"""Beside the checkpoints of a run: the iteration of the newest, or "release"."""
FILE = "model_optim_rng.pt"


def rank_files(directory: Path) -> list[Path]:
    """In the order of the ranks; none where it is no such directory.

    Args:
        directory: one checkpoint (`mp_rank_00/`, `mp_rank_01/`, ...), or those of a run, of which the newest is taken.

    Raises:
        UserError: parts of a pipeline, a rank that is missing, or no telling which checkpoint is meant.
    """
    checkpoint = _checkpoint(directory)
    files = sorted(checkpoint.glob(f"mp_rank_*/{FILE}"), key=lambda file: (numbers_in(file), file))
    ranks = [file.parent.name for file in files]
    expected = [f"mp_rank_{number:02d}" for number in range(len(files))]
    if ranks != expected:
        raise UserError(
            f"{checkpoint} holds {', '.join(ranks)}, expected {', '.join(expected)}: all ranks of tensor parallelism, "
            "and no parts of a pipeline or of experts, which Megatron's own tools join"
        )
    return files


def numbers_in(file: Path) -> list[int]:
    """Of the file and its directory, which is where ranks are told: 2 comes before 10."""
    return [int(number) for number in re.findall(r"\d+", f"{file.parent.name}/{file.name}")]


def _checkpoint(directory: Path) -> Path:
    tracker = directory / TRACKER
    if tracker.is_file():
        newest = tracker.read_text(encoding="utf-8").strip()
        return directory / (f"iter_{int(newest):07d}" if newest.isdecimal() else newest)
    found = sorted(directory.glob("iter_*"))
    if len(found) > 1:
        raise UserError(f"{directory} holds {len(found)} checkpoints and no {TRACKER}: name one, such as {found[-1]}")
    return found[0] if found else directory
