"""Write converted records: each validated, resumable, and what was left out listed.

`OUT.part` grows line by line and becomes `OUT` by rename when all is done. A second start runs the reader again from
the beginning, which costs little beside looking up images, and compares: every line that is there must be the one
that would be written now. So the result has the same bytes, however often it was interrupted.
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
    """What became of the items. `examples` maps a reason to a few places."""

    written: int = 0
    left_out: Counter = field(default_factory=Counter)
    unwanted: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, item: Skipped) -> None:
        (self.unwanted if item.unwanted else self.left_out)[item.reason] += 1
        shown = self.examples.setdefault(item.reason, [])
        if len(shown) < EXAMPLES:
            shown.append(f"{item.where}{f' ({item.id})' if item.id and item.id != item.where else ''}")

    def note(self) -> str:
        return f"{self.written:,} records, {self.left_out.total():,} left out"

    def lines(self) -> Iterator[str]:
        for reason, number in self.left_out.most_common():
            yield f"  {number:,}  {reason}, e.g. {'; '.join(self.examples[reason])}"
        for reason, number in self.unwanted.most_common():
            yield f"  {number:,}  {reason}, as you asked"


def skipped_path(out: Path) -> Path:
    """Not a `.jsonl` itself: a folder that is opened as a source would take it for data."""
    return out.with_name(f"{out.name}.skipped")


def write(
    items: Iterable[Converted | Skipped],
    out: Path,
    image_root: Path | None = None,
    strict: bool = False,
    tell: Callable[[str], None] = lambda note: None,
) -> Tally:
    """Write `out`, and `skipped_path(out)` if anything was left out.

    Args:
        image_root: look there for every image; None believes the records.
        strict: stop at the first item that must be left out.
        tell: called now and then with a line about what was done.

    Raises:
        UserError: `out` is there already, nothing could be converted, `strict` met an item, or the part that is
            there comes from another conversion.
    """
    if out.exists():
        raise UserError(f"{out} is there already; delete it to convert anew, or choose another --out")
    part, listing = out.with_name(f"{out.name}.part"), skipped_path(out)
    aside = listing.with_name(f"{listing.name}.part")
    tally = Tally()
    try:
        with _exclusive(part) as file, aside.open("wb") as skipped:
            for item in _append(items, file, part, image_root, tally):
                if isinstance(item, Skipped) and not item.unwanted:
                    _list(item, skipped, strict)
                if (tally.written + tally.left_out.total()) % 1000 == 0:
                    tell(tally.note())
            tell(tally.note())
            for finished in (file, skipped):
                finished.flush()
                os.fsync(finished.fileno())
        listing.unlink(missing_ok=True)
        if tally.left_out:
            aside.rename(listing)
    finally:
        aside.unlink(missing_ok=True)
    if not tally.written:
        raise UserError("\n".join([f"nothing could be converted; {_places(tally, listing)}", *tally.lines()]))
    part.rename(out)
    return tally


def _list(item: Skipped, skipped: BinaryIO, strict: bool) -> None:
    if strict:
        raise UserError(f"{item.where}: {item.reason}{f' ({item.detail})' * bool(item.detail)}, and --strict was given")
    entry = {"where": item.where, "id": item.id, "reason": item.reason, "detail": item.detail}
    skipped.write(as_json_line(entry))


def summary(tally: Tally, out: Path, image_root: Path | None = None) -> str:
    said = [f"{tally.written:,} records in {out}; {_places(tally, skipped_path(out))}", *tally.lines()]
    where = ["--image-root", str(image_root)] if image_root else []
    return "\n".join([*said, f"next: {shlex.join(['mmchat', 'data', 'check', str(out), *where])}"])


def _places(tally: Tally, listing: Path) -> str:
    number = tally.left_out.total()
    return f"{number:,} items left out, listed in {listing}" if number else "no item failed"


def _append(
    items: Iterable[Converted | Skipped], file: BinaryIO, part: Path, image_root: Path | None, tally: Tally
) -> Iterator[Converted | Skipped]:
    """Put the records behind the lines that are there; yields what became of each item."""
    expected = file.readline()
    for item in items:
        line = _line(item)
        if line and line == expected:  # was validated when it was written
            expected = file.readline()
        elif line:
            item = _checked(item, image_root)
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
            f"{part} was begun with another input, other options or other images: line {tally.written + 1} differs; "
            "delete it to convert anew, or choose another --out"
        )


def _line(item: Converted | Skipped) -> bytes:
    return as_json_line(item.record) if isinstance(item, Converted) else b""


def _checked(item: Converted, image_root: Path | None) -> Converted | Skipped:
    """The item, or why it may not become a record."""
    reason, detail = _problem(item.record, item.where, image_root)
    return Skipped(item.where, item.record["id"], reason, detail) if reason else item


def _problem(record: dict[str, Any], where: str, image_root: Path | None) -> tuple[str, str]:
    """(reason, detail), both empty for a good record. The frequent reasons by name, the others by `parse_record`."""
    images = record.get("image", [])
    images = images if isinstance(images, list) else [images]
    said = {
        speaker: [t["value"] for t in record["conversations"] if t["from"] == speaker] for speaker in ("human", "gpt")
    }
    if not all(answer.strip() for answer in said["gpt"]):
        return "empty answer", ""
    if any(IMAGE_PLACEHOLDER in answer for answer in said["gpt"]):
        return f'literal "{IMAGE_PLACEHOLDER}" in an answer', ""
    places = sum(value.count(IMAGE_PLACEHOLDER) for value in said["human"])
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
    """What the schema itself says; without an image root this file stands for every image."""
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
    """The part file, at its beginning and without a last line that was cut; ours alone until closed."""
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
    """How many bytes are whole lines."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
