"""Images with a class each: a folder for every class, or a table with an image and a label column. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmchat.data.image_refs import ImageRef, make_image_ref
from mmchat.data.record_layouts import IMAGE_KEYS
from mmchat.data.records import Rejected
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.files import read_json

LABEL_KEYS = ("label", "class", "category")


@dataclass(frozen=True)
class LabelledImages:
    """images[i] belongs to classes[targets[i]]; every class has a number, whether an image is of it or not."""

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
    """Raises UserError where nothing is listed, or something twice; `where` begins the message."""
    words = tuple(name.strip() for name in listed)
    if not any(words):
        raise UserError(f"{where} names no label")
    if "" in words:
        raise UserError(f"{where}: label {words.index('') + 1} of {len(words)} is empty")
    if twice := sorted({word for word in words if words.count(word) > 1}):
        raise UserError(f"{where} names {', '.join(map(repr, twice))} more than once; each label must be there once")
    return ClassNames(words, words)


def read_class_names(path: Path) -> ClassNames:
    """Labels of a text file, one a line; or of a .json object, what the data set calls a class -> words for it.

    Raises:
        UserError: the file is missing or no text, names nothing, or a label twice.
    """
    if path.suffix == ".json":
        named = read_json(path)
        if not isinstance(named, dict) or not all(isinstance(words, str) for words in named.values()):
            raise UserError(f"labels {path} must hold an object of class: words, found {type(named).__name__}")
        return ClassNames(tuple(named), parse_class_names(list(named.values()), f"labels {path}").names)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"labels {path} does not exist") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"labels {path} is no text file; expected one label a line") from None
    return parse_class_names([line for line in lines if line.strip()], f"labels {path}")


def read_labelled(
    path: str | Path, image_root: str | Path | None = None, names: ClassNames | None = None
) -> LabelledImages:
    """All images of a folder of classes, or of a table in any storage that `open_source` reads.

    Args:
        image_root: of a table, as `open_source` has it.
        names: the classes and their order, and words for them; None takes what is found, in alphabetical order, as it
            is called. Labels that are numbers count `names` from 0.

    Raises:
        UserError: nothing is there, a row has no image or no label, or a label is not among `names`.
    """
    pairs = _pairs(path, image_root)
    if not pairs:
        raise UserError(f"{path} holds no labelled image; expected a folder for each class, or a table")
    if names is None:
        if numbered := [where for _, label, where in pairs if isinstance(label, int)]:
            raise UserError(f"{numbered[0]}: the label is a number; name the classes, in their order")
        found = tuple(sorted({str(label) for _, label, _ in pairs}))
        names = ClassNames(found, found)
    known = {key: number for number, key in enumerate(names.labels)}
    targets = [_target(label, where, known) for _, label, where in pairs]
    return LabelledImages([image for image, *_ in pairs], targets, list(names.names))


def _target(label: str | int, where: str, known: Mapping[str, int]) -> int:
    number = label if isinstance(label, int) else known.get(label, -1)
    if not 0 <= number < len(known):
        listed = ", ".join(list(known)[:8]) + (", ..." if len(known) > 8 else "")
        raise UserError(f"{where}: label {label!r} is none of the {len(known)} that were named ({listed})")
    return number


def _pairs(path: str | Path, image_root: str | Path | None) -> list[tuple[ImageRef, str | int, str]]:
    """(image, label, where) of every row."""
    source = open_source(path, image_root)
    pairs = []
    for index in range(len(source)):
        where, row = source.table.row(index)
        if isinstance(row, Rejected):
            raise UserError(f"{where}: {row.reason}")
        image, label = (_column(row, keys, where) for keys in (IMAGE_KEYS, LABEL_KEYS))
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise UserError(f"{where}: a label must be a text or a number, found {label!r:.80}")
        try:
            pairs.append((make_image_ref(image, source.image_root, allow_http=False), label, where))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return pairs


def _column(row: Any, keys: tuple[str, ...], where: str) -> Any:
    found = [key for key in keys if row.get(key) is not None] if isinstance(row, Mapping) else []
    if len(found) != 1:
        raise UserError(f"{where}: expected one of {', '.join(keys)}, found {', '.join(found) or 'none of them'}")
    return row[found[0]]
