"""Records: one picture-and-conversation sample, as read from a LLaVA JSON or JSONL file. No torch here.

LLaVA's layout (haotian-liu/LLaVA, docs/Finetune_Custom_Data.md):
`{"id", "image": str | [str, ...], "conversations": [{"from": "human" | "gpt", "value": str}, ...]}`,
with one `<image>` in the human turns for every picture.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.errors import UserError
from mmchat.files import write_text
from mmchat.images import resolve_inside

_KNOWN_KEYS = {"id", "image", "images", "conversations"}
_SPEAKERS = ("system", "human", "gpt")


@dataclass(frozen=True)
class Record:
    """One sample. `images` are paths relative to the source's image root; `where` is `file:record`."""

    id: str
    images: tuple[str, ...]
    conversations: list[dict[str, Any]]
    where: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """A record that cannot be used, and why."""

    where: str
    id: str
    reason: str


def read_records(path: Path, image_root: Path) -> Iterator[Record | Rejected]:
    """Every record of a `.json` (array) or `.jsonl` (one object a line) file, in order.

    Checked here, without decoding: keys and types, roles, at least one answer, one placeholder per image,
    image files that exist below `image_root`. Records are counted from 1, lines of JSONL too.

    Raises:
        UserError: the file is missing, or is no JSON at all (a `.jsonl` rejects the bad line only).
    """
    for where, item in _items(path):
        if isinstance(item, Rejected):
            yield item
            continue
        try:
            yield parse_record(item, where, image_root)
        except UserError as error:
            identity = str(item.get("id", "")) if isinstance(item, dict) else ""
            yield Rejected(where, identity, str(error).removeprefix(f"{where}: "))


def parse_record(item: Any, where: str, image_root: Path) -> Record:
    """Validate one decoded JSON object.

    Raises:
        UserError: beginning with `where`, says what was expected and what was found.
    """

    def fail(problem: str) -> UserError:
        return UserError(f"{where}: {problem}")

    if not isinstance(item, dict):
        raise fail(f"expected an object with id, image and conversations, found {type(item).__name__}")
    if "image" in item and "images" in item:
        raise fail('has both "image" and "images"; expected one of them')
    images = item.get("images", item.get("image", []))
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise fail(f'"image" must be a path or a list of paths, found {images!r:.80}')
    turns = item.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise fail(f'"conversations" must be a non-empty list of turns, found {turns!r:.80}')
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or "from" not in turn:
            raise fail(f'turn {number} must be {{"from": ..., "value": text}}, found {turn!r:.80}')
        if turn["from"] not in _SPEAKERS:
            raise fail(f"turn {number} is from {turn['from']!r}; expected one of {', '.join(_SPEAKERS)}")
    if not any(turn["from"] == "gpt" for turn in turns):
        raise fail("has no gpt turn, so there is nothing to learn")
    placeholders = sum(turn["value"].count(IMAGE_PLACEHOLDER) for turn in turns if turn["from"] == "human")
    if placeholders != len(images):
        raise fail(f"{placeholders} {IMAGE_PLACEHOLDER} in the human turns but {len(images)} images")
    for image in images:
        try:
            found = resolve_inside(image_root, image)
            is_file = found.is_file()
        except UserError as error:
            raise fail(str(error)) from None
        except OSError as error:  # a name longer than the file system takes, a folder that may not be entered
            raise fail(f"image {image!r:.80} cannot be looked up: {error.strerror}") from None
        if not is_file:
            raise fail(f"image {found} does not exist")
    extra = {key: value for key, value in item.items() if key not in _KNOWN_KEYS}
    return Record(str(item.get("id", where)), tuple(images), turns, where, extra)


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    where = f"{path}:{number}"
                    try:
                        if line.strip():
                            yield where, json.loads(line)
                    except json.JSONDecodeError as error:
                        yield where, Rejected(where, "", f"invalid JSON: {_problem(error)}")
            return
        items = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"data file {path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"data file {path} is a folder, expected a .json or .jsonl file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"data file {path} is not UTF-8 text: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: invalid JSON: {_problem(error)}; "
            "a broken array cannot be read in part: mend it, or store one record a line as .jsonl"
        ) from None
    if not isinstance(items, list):
        raise UserError(f"data file {path} must hold a JSON array of records, found {type(items).__name__}")
    for number, item in enumerate(items, 1):
        yield f"{path}:record {number}", item


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write LLaVA records, one a line, as a JSON array (`.json`) or as JSONL (`.jsonl`)."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    text = "\n".join(lines) if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
    write_text(path, text + "\n")


def _problem(error: json.JSONDecodeError) -> str:
    """Some of json's messages end with "at" already."""
    return f"{error.msg.removesuffix(' at')} at column {error.colno}"
