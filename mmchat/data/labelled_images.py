"""Images with class labels: one folder per class, or a table with an image and a label column. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmchat.data.image_refs import ImageRef, make_image_ref
from mmchat.data.record_layouts import image_entry, read_members
from mmchat.data.records import Rejected
from mmchat.data.row_layouts.downloads import NOT_DOWNLOADED
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.files import read_json

LABEL_KEYS = ("label", "class", "category")


@dataclass(frozen=True)
class LabelledImages:
    """`images[i]` belongs to `classes[targets[i]]`. A class may have no image."""

    images: list[ImageRef]
    targets: list[int]
    classes: list[str]


@dataclass(frozen=True)
class ClassNames:
    """The classes named by the user, in their order.

    Attributes:
        labels: The labels in the data set.
        names: What people call the classes; prompts are made from these.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]


def parse_class_names(listed: Sequence[str], where: str) -> ClassNames:
    """Classes whose labels are their names.

    Raises:
        UserError: The list is empty, or holds an empty or a repeated name. The message begins with `where`.
    """
    names = tuple(name.strip() for name in listed)
    if not any(names):
        raise UserError(f"{where} names no label")
    if "" in names:
        raise UserError(f"{where}: label {names.index('') + 1} of {len(names)} is empty")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where} names {', '.join(map(repr, repeated))} more than once; name each label once")
    return ClassNames(names, names)


def read_class_names(path: Path) -> ClassNames:
    """Read classes from a text file with one name per line, or from a .json object of label -> name.

    Raises:
        UserError: The file is missing or not text, is empty, or repeats a name.
    """
    if path.suffix == ".json":
        named = read_json(path)
        if not isinstance(named, dict) or not all(isinstance(words, str) for words in named.values()):
            raise UserError(f"labels {path} must hold an object of label: name, found {type(named).__name__}")
        return ClassNames(tuple(named), parse_class_names(list(named.values()), f"labels {path}").names)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"labels {path} does not exist") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"labels {path} is not a text file; expected one label per line") from None
    return parse_class_names([line for line in lines if line.strip()], f"labels {path}")


def read_labelled(
    path: str | Path, image_root: str | Path | None = None, names: ClassNames | None = None
) -> LabelledImages:
    """Read the labelled images of class folders, or of a table in any storage that `open_source` reads.

    Args:
        path: The folder or table.
        image_root: Folder that a table's image paths are relative to, as in `open_source`.
        names: The classes in order. None takes the labels found, in alphabetical order. Integer labels index `names`
            from 0.

    Raises:
        UserError: No image, a row without image or label, or a label that is not in `names`.
    """
    pairs = _pairs(path, image_root)
    if not pairs:
        raise UserError(f"{path} holds no labelled image; expected one folder per class, or a table")
    if names is None:
        if numbered := [where for _, label, where in pairs if isinstance(label, int)]:
            raise UserError(f"{numbered[0]}: the label is a number; name the classes in order")
        labels = tuple(sorted({str(label) for _, label, _ in pairs}))
        names = ClassNames(labels, labels)
    known = {key: number for number, key in enumerate(names.labels)}
    targets = [_target(label, where, known) for _, label, where in pairs]
    return LabelledImages([image for image, *_ in pairs], targets, list(names.names))


def _target(label: str | int, where: str, known: Mapping[str, int]) -> int:
    number = label if isinstance(label, int) else known.get(label, -1)
    if not 0 <= number < len(known):
        shown = ", ".join(list(known)[:8]) + (", ..." if len(known) > 8 else "")
        raise UserError(f"{where}: label {label!r} is none of the {len(known)} named classes ({shown})")
    return number


def _pairs(path: str | Path, image_root: str | Path | None) -> list[tuple[ImageRef, str | int, str]]:
    """(image, label, where) of every row."""
    source = open_source(path, image_root)
    pairs = []
    for index in range(len(source)):
        where, row = source.table.row(index)
        if isinstance(row, Rejected):
            raise UserError(f"{where}: {row.reason}")
        try:
            if not isinstance(row, Mapping):
                raise UserError(f"expected an object, found {type(row).__name__}")
            label = _label(read_members(row))
            pairs.append((make_image_ref(image_entry(row), source.image_root, allow_http=False), label, where))
        except UserError as error:
            if error.kind == NOT_DOWNLOADED:
                continue
            raise UserError(f"{where}: {error}") from None
    return pairs


def _label(row: Mapping[str, Any]) -> str | int:
    found = [key for key in LABEL_KEYS if row.get(key) is not None]
    if len(found) != 1:
        raise UserError(f"expected one of {', '.join(LABEL_KEYS)}, found {', '.join(found) or 'none of them'}")
    label = row[found[0]]
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise UserError(f"a label must be a text or a number, found {label!r:.80}")
    return label
