"""Writes converted records: each is validated, the conversion can be resumed, and skipped items are listed.

`OUT.part` is written line by line and renamed to `OUT` at the end. A resumed conversion runs the reader from the
beginning, which is cheap compared with looking up images. Every existing line must equal the line that would be written
now. So the result has the same bytes, regardless of interruptions.
"""

import fcntl
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from convert_readers.interface import Converted, Skipped

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.data.records import parse_record
from mmchat.errors import UserError
from mmchat.files import as_json_line
from mmchat.images import resolve_inside

EXAMPLES = 3
_BLOCK = 1 << 16


@dataclass
class Tally:
    """Counts of converted and skipped items. examples: reason -> a few places."""

    written: int = 0
    left_out: Counter = field(default_factory=Counter)
    deselected: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, item: Skipped) -> None:
        (self.deselected if item.deselected else self.left_out)[item.reason] += 1
        places = self.examples.setdefault(item.reason, [])
        if len(places) < EXAMPLES:
            places.append(f"{item.where}{f' ({item.id})' if item.id and item.id != item.where else ''}")

    def note(self) -> str:
        return f"{self.written:,} records, {self.left_out.total():,} left out"

    def lines(self) -> Iterator[str]:
        for reason, number in self.left_out.most_common():
            yield f"  {number:,}  {reason}, e.g. {'; '.join(self.examples[reason])}"
        for reason, number in self.deselected.most_common():
            yield f"  {number:,}  {reason}, deselected"


def skipped_path(out: Path) -> Path:
    """Path of the list of skipped items. Not a `.jsonl`, which would be read as data if the folder is a source."""
    return out.with_name(f"{out.name}.skipped")


def write_records(
    items: Iterable[Converted | Skipped],
    out: Path,
    image_root: Path | None = None,
    strict: bool = False,
    report: Callable[[str], None] = lambda note: None,
) -> Tally:
    """Write `out`, and `skipped_path(out)` if anything was left out.

    Args:
        image_root: folder in which every image must exist; None does not check.
        strict: stop at the first item that cannot be converted.
        report: called regularly with a status line.

    Raises:
        UserError: `out` exists, nothing could be converted, an item cannot be converted and `strict` is set, or the
            `.part` file comes from another conversion.
    """
    if out.exists():
        raise UserError(f"{out} exists; delete it to convert again, or choose another --out")
    part, listing = out.with_name(f"{out.name}.part"), skipped_path(out)
    aside = listing.with_name(f"{listing.name}.part")
    tally = Tally()
    try:
        with _exclusive(part) as file, aside.open("wb") as skipped:
            for item in _append(items, file, part, image_root, tally):
                if isinstance(item, Skipped) and not item.deselected:
                    _write_skipped(item, skipped, strict)
                if (tally.written + tally.left_out.total()) % 1000 == 0:
                    report(tally.note())
            report(tally.note())
            for finished in (file, skipped):
                finished.flush()
                os.fsync(finished.fileno())
        listing.unlink(missing_ok=True)
        if tally.left_out:
            aside.rename(listing)
    finally:
        aside.unlink(missing_ok=True)
    if not tally.written:
        raise UserError("\n".join([f"nothing could be converted; {_skipped_summary(tally, listing)}", *tally.lines()]))
    part.rename(out)
    return tally


def _write_skipped(item: Skipped, skipped: BinaryIO, strict: bool) -> None:
    if strict:
        raise UserError(f"{item.where}: {item.reason}{f' ({item.detail})' * bool(item.detail)}, and --strict was given")
    entry = {"where": item.where, "id": item.id, "reason": item.reason, "detail": item.detail}
    skipped.write(as_json_line(entry))


def summary(tally: Tally, out: Path, image_root: Path | None = None) -> str:
    speeches = [f"{tally.written:,} records in {out}; {_skipped_summary(tally, skipped_path(out))}", *tally.lines()]
    where = ["--image-root", str(image_root)] if image_root else []
    return "\n".join([*speeches, f"next: {shlex.join(['mmchat', 'data', 'check', str(out), *where])}"])


def _skipped_summary(tally: Tally, listing: Path) -> str:
    number = tally.left_out.total()
    return f"{number:,} items left out, listed in {listing}" if number else "no item failed"


def _append(
    items: Iterable[Converted | Skipped], file: BinaryIO, part: Path, image_root: Path | None, tally: Tally
) -> Iterator[Converted | Skipped]:
    """Append the records after the existing lines; yields the result for each item."""
    expected = file.readline()
    for item in items:
        line = _line(item)
        if line and line == expected:  # validated when it was written
            expected = file.readline()
        elif line:
            item = _validated(item, image_root)
            if isinstance(item, Converted):
                if expected:
                    break
                file.write(line)
        if isinstance(item, Converted):
            tally.written += 1
        else:
            tally.leave_out(item)
        yield item
    if expected:
        raise UserError(
            f"{part} was started with another input, other options or other images: line {tally.written + 1} differs; "
            "delete it to convert again, or choose another --out"
        )


def _line(item: Converted | Skipped) -> bytes:
    return as_json_line(item.record) if isinstance(item, Converted) else b""


def _validated(item: Converted, image_root: Path | None) -> Converted | Skipped:
    """The item, or the reason why it is not a valid record."""
    reason, detail = _problem(item.record, item.where, image_root)
    return Skipped(item.where, item.record["id"], reason, detail) if reason else item


def _problem(record: dict[str, Any], where: str, image_root: Path | None) -> tuple[str, str]:
    """(reason, detail), both empty for a valid record. Checks the frequent reasons, then calls `parse_record`."""
    images = record.get("image", [])
    images = images if isinstance(images, list) else [images]
    speeches = {
        speaker: [t["value"] for t in record["conversations"] if t["from"] == speaker] for speaker in ("human", "gpt")
    }
    if not all(answer.strip() for answer in speeches["gpt"]):
        return "empty answer", ""
    if any(IMAGE_PLACEHOLDER in answer for answer in speeches["gpt"]):
        return f'literal "{IMAGE_PLACEHOLDER}" in an answer', ""
    places = sum(value.count(IMAGE_PLACEHOLDER) for value in speeches["human"])
    if places != len(images):
        return f'not as many "{IMAGE_PLACEHOLDER}" as images', f"{places} in the text, {len(images)} images"
    for image in images:
        try:
            path = resolve_inside(image_root or Path(), str(image))
            if image_root and not path.is_file():
                return "image file missing", str(path)
        except (UserError, OSError) as error:
            return "image path refused", str(error)
    return _invalid(record, where, image_root)


def _invalid(record: dict[str, Any], where: str, image_root: Path | None) -> tuple[str, str]:
    """(reason, detail) of `parse_record`. Without an image root, this file stands in for every image."""
    if image_root is None and "image" in record:
        here, image = Path(__file__), record["image"]
        stand_in = [here.name] * len(image) if isinstance(image, list) else here.name
        record, image_root = {**record, "image": stand_in}, here.parent
    try:
        parse_record(record, where, image_root or Path())
    except UserError as error:
        return "invalid record", str(error).removeprefix(f"{where}: ")
    return "", ""


@contextmanager
def _exclusive(part: Path) -> Iterator[BinaryIO]:
    """The part file, locked, positioned at the start, with an incomplete last line removed."""
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    with part.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{part} is being written by another conversion; choose another --out") from None
        file.truncate(_end_of_lines(file))
        file.seek(0)
        try:
            yield file
        finally:
            if not file.seek(0, os.SEEK_END):
                part.unlink()


def _end_of_lines(file: BinaryIO) -> int:
    """Number of bytes up to the last line end."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
