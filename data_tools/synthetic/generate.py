"""Generates numbered samples on several processes. An interrupted run resumes, and the bytes are always the same.

Sample `n` is a function of the plan and of `n`. Samples are generated in chunks. A chunk whose records are written is
complete and is not generated again. At the end all records are merged:

    OUT/engine.plan        everything that determines the bytes; written first
    OUT/.parts/00000.json  records of a finished chunk, by name of their file
    OUT/NAME.jsonl         all records, in order
    OUT/skipped/           what was left out; a separate folder, so that it is not read as data
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmchat.command_line.options import require_empty
from mmchat.data.parallel import chunk_ranges, map_chunks
from mmchat.data.records import write_records
from mmchat.errors import UserError
from mmchat.files import read_json, write_json
from synthetic.label_check import DefectError

PLAN, PARTS, SKIPPED = "engine.plan", ".parts", "skipped"
REDRAWN = f"{SKIPPED}/redrawn"
ATTEMPTS = 5
Records = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Sample:
    """Records by file name and encoded images by path, both relative to the output folder."""

    records: Records
    images: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class ConcatMaker:
    """Concatenates the samples of several makers, each numbered from 0. counts: samples of each maker."""

    makers: tuple[Callable[[int], Sample], ...]
    counts: tuple[int, ...]

    def __call__(self, number: int) -> Sample:
        for maker, count in zip(self.makers, self.counts, strict=True):
            if number < count:
                return maker(number)
            number -= count
        raise IndexError(number)

    def __len__(self) -> int:
        return sum(self.counts)


def retry_defects(attempt: Callable[[int], Sample]) -> Sample:
    """The first attempt without a defect; failed ones are listed in `skipped/redrawn.jsonl`.

    Args:
        attempt: makes the sample of an attempt number.

    Raises:
        DefectError: five attempts failed. This is a bug of the generator, not a rare font.
    """
    failed: list[dict[str, str]] = []
    while True:
        try:
            sample = attempt(len(failed))
        except DefectError as defect:
            failed.append({"reason": str(defect)})
            if len(failed) == ATTEMPTS:
                raise
        else:
            return replace(sample, records={**sample.records, REDRAWN: failed}) if failed else sample


@dataclass(frozen=True)
class _ChunkWriter:
    """Makes and writes a chunk of samples; sent to every process once."""

    make: Callable[[int], Sample]
    out: Path

    def __call__(self, numbers: Sequence[int]) -> None:
        records: Records = {}
        for number in numbers:
            sample = self.make(number)
            for name, data in sample.images.items():
                path = self.out / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            for name, lines in sample.records.items():
                records.setdefault(name, []).extend(lines)
        write_json(self.out / PARTS / f"{numbers[0]:09}.json", records)


def generate_dataset(
    make: Callable[[int], Sample], count: int, out: Path, plan: dict[str, Any], workers: int, chunk_size: int = 64
) -> dict[str, int]:
    """Write samples 0 to `count` below `out`.

    Args:
        make: picklable function of the sample number alone.
        plan: everything that `make` depends on, as JSON; `count` is added to it.
        workers: processes; 0 runs in this process.
        chunk_size: samples per chunk. An interrupted run loses at most one chunk per worker.

    Returns:
        Number of records by file name without suffix.

    Raises:
        UserError: `out` holds something else, or samples of another plan.
    """
    plan = json.loads(json.dumps({**plan, "count": count}))
    _claim_output(out, plan)
    chunks = chunk_ranges(count, chunk_size)
    missing = [numbers for numbers in chunks if not (out / PARTS / f"{numbers[0]:09}.json").exists()]
    if (out / PARTS).exists() or not any(out.glob("*.jsonl")):
        for _ in map_chunks(_ChunkWriter(make, out), missing, f"samples of {out}", workers):
            pass
        _merge(out, [out / PARTS / f"{numbers[0]:09}.json" for numbers in chunks])
        shutil.rmtree(out / PARTS)
    files = sorted(out.rglob("*.jsonl"))
    return {str(path.relative_to(out).with_suffix("")): path.read_bytes().count(b"\n") for path in files}


def _claim_output(out: Path, plan: dict[str, Any]) -> None:
    if (out / PLAN).exists():
        other = read_json(out / PLAN)
        if other != plan:
            names = [name for name in {**other, **plan} if other.get(name) != plan.get(name)]
            raise UserError(
                f"{out} was started with other settings ({', '.join(names)}; see {out / PLAN}); choose another --out"
            )
    else:
        require_empty(out)
        write_json(out / PLAN, plan)


def _merge(out: Path, parts: list[Path]) -> None:
    """Merge the records of all chunks. All files are written aside, then renamed, so an existing file is complete."""
    merged: Records = {}
    for path in parts:
        for name, records in read_json(path).items():
            merged.setdefault(name, []).extend(records)
    aside = out / PARTS / "joined"
    for name, records in merged.items():
        write_records(aside / f"{name}.jsonl", records)
    for name in merged:
        (out / name).parent.mkdir(exist_ok=True)
        (aside / f"{name}.jsonl").replace(out / f"{name}.jsonl")
