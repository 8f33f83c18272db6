"""WebDataset's samples: members, or columns, that are named after file extensions.

    jpg png webp ...   images; several are 0.jpg, 1.jpg, ...       json   a record, or its list of turns
    txt caption        the caption; input.txt and output.txt a question and its answer       cls   the label

The names are those of webdataset/webdataset ("The WebDataset Format") and of Hugging Face `datasets`, which reads
shards as columns beside `__key__` (docs: "Load WebDataset"). TarTable gives its samples in the same form.
"""

from collections.abc import Mapping
from typing import Any

from mmchat.data.image_refs import ImageRef
from mmchat.data.record_meaning import MEDIA, MEDIA_SUFFIXES
from mmchat.errors import UserError
from mmchat.images import IMAGE_SUFFIXES

KEY = "__key__"
TEXTS = ("txt", "caption", "text")
LABELS = ("cls", "label")
QUESTION, ANSWER = ("input", "question", "prompt"), ("output", "answer", "completion")
"""First parts of names as `input.jpg` and `output.txt`."""


def is_image(extension: str) -> bool:
    return f".{extension.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES


def read_members(row: Mapping[str, Any]) -> dict[str, Any]:
    """A sample as a row with `images` and a record, a caption, a question with its answer, or a label.

    A row of another layout is returned as it is.

    Raises:
        UserError: A member changes what the sample means and is not read, or the record names other images.
    """
    names = [key for key in row if isinstance(key, str) and is_image(key) and _is_stored(row[key])]
    if not names and KEY not in row:
        return dict(row)
    _refuse_unread(row, names)
    texts = {name: row[name] for name in row if _last(name) in TEXTS and isinstance(row[name], str | list)}
    labels = [row[name] for name in row if name in LABELS and isinstance(row[name], str | int)]
    rest = {name: row[name] for name in row if name not in (*names, *texts, *LABELS, KEY, "json")}
    stored = _record(row.get("json"))
    _check_names(stored, len(names))
    record = {"id": row.get(KEY), **rest, **({"label": _class(labels[0])} if labels else {}), **stored}
    if names:
        record |= {"image": None, "images": [row[name] for name in sorted(names, key=_number)]}
    has_text = any(record.get(key) for key in ("conversations", "conversation", "messages", "texts", "caption"))
    return {**texts, **record} if has_text else {**record, **_text(texts)}


def _refuse_unread(row: Mapping[str, Any], images: list[str]) -> None:
    if media := [name for name in row if f".{_last(name)}" in MEDIA_SUFFIXES and row[name] is not None]:
        raise UserError(f"holds .{media[0]}, which is video or audio, and only images are read", MEDIA)
    if answers := [name for name in images if name.partition(".")[0] in ANSWER]:
        raise UserError(f"holds .{answers[0]}, an image as the answer, which no objective here learns")


def _is_stored(value: Any) -> bool:
    return isinstance(value, bytes | ImageRef) or (isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes))


def _record(stored: Any) -> dict[str, Any]:
    """The content of `.json`: an object, or a list of turns."""
    if stored is None:
        return {}
    if isinstance(stored, list) and stored and isinstance(stored[0], Mapping):
        keys = {"from": "conversations", "value": "conversations", "role": "messages", "user": "texts"}
        key = next((key for spelled, key in keys.items() if spelled in stored[0]), None)
        if key is not None:
            return {key: stored}
    if not isinstance(stored, Mapping):
        raise UserError(f"its .json is neither an object nor a list of turns, found {stored!r:.80}", "malformed_record")
    return dict(stored)


def _check_names(record: Mapping[str, Any], images: int) -> None:
    """The record may name its images; then the sample must hold as many."""
    names = record.get("image") or record.get("images") or []
    names = names if isinstance(names, list | tuple) else [names]
    if not all(isinstance(name, str | Mapping) for name in names):
        raise UserError(f"its .json must name images by their paths, found {names!r:.80}")
    if names and len(names) != images:
        raise UserError(f"its .json names {len(names)} images, the shard holds {images}")


def _text(texts: Mapping[str, Any]) -> dict[str, Any]:
    """What the text members of a sample without a record say."""
    parts = {name: name.partition(".")[0] for name in texts if "." in name}
    questions = [texts[name] for name, first in parts.items() if first in QUESTION]
    answers = [texts[name] for name, first in parts.items() if first in ANSWER]
    if questions:
        return {"question": questions, "answer": answers}
    captions = [texts[name] for name in sorted(texts, key=_number)]
    return {"caption": captions[0] if len(captions) == 1 else captions} if captions else {}


def _class(stored: str | int) -> str | int:
    """`.cls` is a number in ASCII (webdataset/autodecode.py), or a name."""
    text = stored.strip() if isinstance(stored, str) else stored
    return int(text) if isinstance(text, str) and text.isdecimal() else text


def _last(name: Any) -> str:
    return str(name).rpartition(".")[2].lower()


def _number(name: str) -> tuple[int, str]:
    """Images and captions in order of the number in their name."""
    number = name.partition(".")[0]
    return (int(number), "") if number.isdecimal() else (0, name)
