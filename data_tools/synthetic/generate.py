"""Make numbered samples on several processes, so that a cut-off run goes on and the bytes are always the same.

Sample `n` is a function of the plan and of `n`. Samples are made in stretches; where a stretch's records stand, it is
whole, and is not made again. In the end all records come together:

    OUT/engine.plan        what decides the bytes; written first
    OUT/.parts/00000.json  the records of a finished stretch, by name of their file
    OUT/NAME.jsonl         all of them, in order
    OUT/skipped/           what was left out, apart from the data, which it would be taken for
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
    """Records by the file that they belong to, images (encoded) by path; both below the output folder."""

    records: Records
    images: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class ConcatMaker:
    """The samples of several makers, one maker after another, each numbered from 0."""

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


def redrawn(attempt: Callable[[int], Sample]) -> Sample:
    """The first attempt that passes its own check; those before it are listed in `skipped/redrawn.jsonl`.

    Raises:
        DefectError: none of five does; that is no rare font, but a mistake of the engine.
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
class _Stretch:
    """Makes and stores samples; sent to every process once."""

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
    make: Callable[[int], Sample], count: int, out: Path, plan: dict[str, Any], workers: int, stretch: int = 64
) -> dict[str, int]:
    """Samples 0 to `count` below `out`; how many records each file has.

    Args:
        make: picklable, and a function of the number alone.
        plan: all that `make` depends on, as JSON; `count` is added to it.
        workers: processes; 0 works in this one.
        stretch: samples made at a time; what a cut-off run loses at most, times `workers`.

    Raises:
        UserError: `out` holds something else, or samples of another plan.
    """
    plan = json.loads(json.dumps({**plan, "count": count}))
    _claim(out, plan)
    stretches = chunk_ranges(count, stretch)
    missing = [numbers for numbers in stretches if not (out / PARTS / f"{numbers[0]:09}.json").exists()]
    if (out / PARTS).exists() or not any(out.glob("*.jsonl")):
        for _ in map_chunks(_Stretch(make, out), missing, f"samples of {out}", workers):
            pass
        _join(out, [out / PARTS / f"{numbers[0]:09}.json" for numbers in stretches])
        shutil.rmtree(out / PARTS)
    files = sorted(out.rglob("*.jsonl"))
    return {str(path.relative_to(out).with_suffix("")): path.read_bytes().count(b"\n") for path in files}


def _claim(out: Path, plan: dict[str, Any]) -> None:
    if (out / PLAN).exists():
        other = read_json(out / PLAN)
        if other != plan:
            names = [name for name in {**other, **plan} if other.get(name) != plan.get(name)]
            raise UserError(
                f"{out} was begun with other settings ({', '.join(names)}; see {out / PLAN}); name another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty; remove it or name another --out")
    else:
        write_json(out / PLAN, plan)


def _join(out: Path, parts: list[Path]) -> None:
    """All files aside first, then renamed: where one stands, the records of all are whole."""
    together: Records = {}
    for path in parts:
        for name, records in read_json(path).items():
            together.setdefault(name, []).extend(records)
    aside = out / PARTS / "joined"
    for name, records in together.items():
        write_records(aside / f"{name}.jsonl", records)
    for name in together:
        (out / name).parent.mkdir(exist_ok=True)
        (aside / f"{name}.jsonl").replace(out / f"{name}.jsonl")
