"""The data of a task: samples in order, and their images, which are read when they are asked for."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from PIL import Image

from mmchat.data.image_refs import ImageRef, make_image_ref
from mmchat.data.row_layouts.image_column import IMAGES, read_image_column
from mmchat.errors import UserError
from mmchat.evaluation.tasks.columns import columns_of, has_placeholders, text_at, texts_at, value_at
from mmchat.evaluation.tasks.definition import LayoutConfig, TaskConfig
from mmchat.evaluation.tasks.rows import Opened, Rows, open_rows
from mmchat.evaluation.tasks.samples import Sample

CIRCULAR_STEP = 1_000_000
"""MMBench's files hold a question with its options in other orders at its index plus a multiple of this."""


class TaskData:
    """The samples of a task. Only their texts are held in memory.

    Args:
        task: The task.
        paths: Files and folders of one layout.
        image_root: Folder that image paths are relative to; None: that of the file.

    Raises:
        UserError: They are not in any layout of the task, or a row cannot be used.
    """

    def __init__(self, task: TaskConfig, paths: Sequence[Path], image_root: Path | None = None) -> None:
        opened = [open_rows(path, image_root) for path in paths]
        self.layout, self._rows, self._root = _choose(task, opened)
        self.left_out = 0
        """Rows without an image, which belong to another task."""
        samples = list(self._read(task))
        if not samples:
            raise UserError(f"{', '.join(map(str, paths))} holds no question of this task")
        self.samples = _all_orders(samples) if task.circular else samples
        _refuse_equal_ids(self.samples)

    def first(self, count: int | None) -> list[Sample]:
        """The samples of the first questions; all orders of a question's options, and both of a pair, are one."""
        groups = list(dict.fromkeys(sample.group for sample in self.samples))
        chosen = set(groups[:count])
        return [sample for sample in self.samples if sample.group in chosen]

    def images(self, sample: Sample) -> list[ImageRef]:
        """The images of a sample. Raises UserError if they cannot be found."""
        return self._refs(self._rows[sample.row])

    def open_image(self, sample: Sample) -> Image.Image:
        """The first image of a sample. Raises UserError if it cannot be found or opened."""
        return self.images(sample)[0].open()

    def _read(self, task: TaskConfig) -> Iterator[Sample]:
        for number in range(len(self._rows)):
            row = self._rows[number]
            if any(text_at(row, column) != value for column, value in self.layout.where.items()):
                continue
            name = text_at(row, self.layout.id) if self.layout.id else str(number)
            try:
                entries = self._entries(row)
                if not entries and task.only_with_image:
                    self.left_out += 1
                    continue
                sample = _sample(self.layout, row, number, name)
                question = sample.question
                for text in task.remove:
                    question = question.replace(text, "")
                yield replace(sample, question=question.strip(), image=_image_key(entries))
            except UserError as error:
                raise UserError(f"row {number + 1} (id {name}): {error}") from None

    def _entries(self, row: Mapping[str, Any]) -> list[Any]:
        """What the image column holds: paths, bytes, base64."""
        if has_placeholders(self.layout.image):
            path = text_at(row, self.layout.image)
            return [] if path is None else [path]
        value = value_at(row, self.layout.image)
        return read_image_column({IMAGES: value})[IMAGES] if value is not None else []

    def _refs(self, row: Mapping[str, Any]) -> list[ImageRef]:
        found = [make_image_ref(entry, self._root, False) for entry in self._entries(row)]
        if not found:
            raise UserError("has no image")
        return found


def _sample(layout: LayoutConfig, row: Mapping[str, Any], number: int, name: str | None) -> Sample:
    """The texts of a row.

    Raises:
        UserError: Something is missing, or the right answer is none of the options.
    """
    question = "" if layout.question is None else text_at(row, layout.question)
    if name is None or question is None:
        missing = layout.id if name is None else layout.question
        raise UserError(f"column {missing!r} is empty")
    options = _options(layout, row)
    fields = {field: value for field, column in layout.fields.items() if (value := text_at(row, column)) is not None}
    answers = tuple(_answers(layout, row, options))
    group = fields.get("group", name)
    return Sample(name, question, answers, options, fields, "", number, group)


def _options(layout: LayoutConfig, row: Mapping[str, Any]) -> tuple[str, ...]:
    if layout.letters:
        return ("",) * layout.letters
    if isinstance(layout.options, str):
        return tuple(texts_at(row, layout.options))
    found = []
    for column in layout.options:
        text = text_at(row, column)
        if text is None:
            break
        found.append(text)
    return tuple(found)


def _answers(layout: LayoutConfig, row: Mapping[str, Any], options: tuple[str, ...]) -> list[str]:
    """The right answers: letters where there are options."""
    answers = texts_at(row, layout.answers)
    if not options or not answers:
        return answers
    if layout.answer_is_index:
        answers = [ascii_uppercase[int(text)] if text.isdigit() and int(text) < 26 else text for text in answers]
    known = ascii_uppercase[: len(options)]
    if not all(len(text) == 1 and text in known for text in answers):
        raise UserError(f"the right answer must be a letter from A to {known[-1]}, found {', '.join(answers)}")
    return answers


def _image_key(entries: Sequence[Any]) -> str:
    """Equal for equal images: a path, or a digest of what is stored. A short text stands for itself."""
    keys = []
    for entry in entries:
        stored = entry.get("bytes") or entry.get("path") if isinstance(entry, Mapping) else entry
        data = stored if isinstance(stored, bytes) else str(stored).encode("utf-8", "surrogatepass")
        short = isinstance(stored, str) and len(stored) <= 256
        keys.append(stored if short else hashlib.blake2b(data, digest_size=12).hexdigest())
    return "\n".join(keys)


# Layouts


def _choose(task: TaskConfig, opened: Sequence[Opened]) -> tuple[LayoutConfig, Rows, str]:
    """The first layout that the data are in, its rows, and the folder of its images.

    Raises:
        UserError: None; says what each lacks.
    """
    lacks = []
    for layout in task.layouts:
        rows, root, missing = _rows_of(layout, opened, task.by)
        if rows is not None:
            return layout, rows, root
        lacks.append(f"  {layout.name}: {missing}")
    names = ", ".join(one.path for one in opened)
    raise UserError("\n".join([f"{names} is in none of the layouts of this task:", *lacks]))


def _rows_of(layout: LayoutConfig, opened: Sequence[Opened], by: Sequence[str]) -> tuple[Rows | None, str, str]:
    """The rows of a layout and the folder of its images, or what is missing."""
    found = [(one, rows) for one in opened if (rows := one.rows(layout.rows)) is not None and len(rows)]
    if not found:
        return None, "", f"no list {layout.rows!r}" if layout.rows else "not a table, or an empty one"
    if layout.join is None:
        rows: Rows = found[0][1] if len(found) == 1 else _Concatenated([part for _, part in found])
        base = found[0][0]
    else:
        base, first = found[0]
        others = [one.rows(layout.join.rows) for one in opened if one is not base or layout.join.rows != layout.rows]
        other = next(
            (part for part in others if part is not None and len(part) and layout.join.theirs in part[0]), None
        )
        if other is None:
            what = f"list {layout.join.rows!r}" if layout.join.rows else "second table"
            return None, "", f"no {what} with {layout.join.theirs!r}"
        rows = _Joined(first, other, layout.join.column, layout.join.theirs, layout.join.many)
    missing = _missing(layout, rows[0], by)
    return (None, "", f"no column {', '.join(missing)}") if missing else (rows, base.root, "")


def _missing(layout: LayoutConfig, row: Mapping[str, Any], by: Sequence[str]) -> list[str]:
    """Columns that every row of a layout has and this one has not. An option or a hint may be empty."""
    needed = [layout.image, layout.answers, *([layout.question] if layout.question else [])]
    needed += [layout.options] if isinstance(layout.options, str) else layout.options[:2]
    needed += [layout.id] if layout.id else []
    needed += [column for name, column in layout.fields.items() if name in by or name == "group"]
    return [name for text in needed for name in columns_of(text) if name not in row]


class _Concatenated:
    def __init__(self, parts: Sequence[Rows]) -> None:
        self._places = [(part, number) for part in parts for number in range(len(part))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        part, number = self._places[index]
        return part[number]


class _Joined:
    """Rows with the columns of others that belong to them."""

    def __init__(self, rows: Rows, others: Rows, column: str, theirs: str, many: bool) -> None:
        self._rows, self._others, self._column, self._many = rows, others, column, many
        self._places: dict[str, list[int]] = {}
        for number in range(len(others)):
            self._places.setdefault(str(others[number].get(theirs)), []).append(number)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = self._rows[index]
        others = [self._others[number] for number in self._places.get(str(row.get(self._column)), [])]
        if self._many:
            columns = {name: [other.get(name) for other in others] for name in (others[0] if others else {})}
            return {**columns, **row}
        return {**(others[0] if others else {}), **row}


# Samples


def _all_orders(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with their options in all orders by turns, unless the data hold these already."""
    stored = [sample for sample in samples if sample.id.isdigit() and int(sample.id) >= CIRCULAR_STEP]
    if stored:
        return [replace(sample, group=str(int(sample.id) % CIRCULAR_STEP)) for sample in samples]
    return [_turned(sample, turns) for sample in samples for turns in range(max(1, len(sample.options)))]


def _turned(sample: Sample, turns: int) -> Sample:
    """The sample with so many options moved from the beginning to the end, and the letter that became of the answer."""
    if turns == 0:
        return sample
    options = (*sample.options[turns:], *sample.options[:turns])
    answers = tuple(
        ascii_uppercase[(ascii_uppercase.index(letter) - turns) % len(options)] for letter in sample.answers
    )
    return replace(sample, id=f"{sample.id}#{turns}", options=options, answers=answers, turns=turns)


def _refuse_equal_ids(samples: Sequence[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise UserError(f"id {sample.id!r} occurs twice, so answers cannot be told apart; name the data once")
        seen.add(sample.id)
