"""Hugging Face image-text data sets on disk: folders of `save_to_disk`, or parquet files.

Rows are read as Arrow, a few at a time. Images are stored in the rows as `{"bytes", "path"}` and are written to files.
The text column has one or several captions, the_cauldron's `texts` [{user, assistant}], or a conversation in LLaVA's
format ({from, value}) or as chat messages ({role, content}).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert_readers.captions import CAPTION_COLUMNS, IMAGE_COLUMNS, caption_record, pick_column
from convert_readers.interface import (
    ConversionJob,
    Converted,
    Skipped,
    UnusableItem,
    make_turns,
    plain_text,
    source_id,
    speaker_name,
)
from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.files import read_json
from mmchat.images import extension_of

ROWS = 16
"""Rows in memory; a row of the_cauldron can contain several photographs."""

TEXT_COLUMNS = ("conversations", "conversation", "messages", "texts", *CAPTION_COLUMNS)
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


def data_files(inputs: list[Path], split: str) -> list[Path]:
    """The parquet and arrow files of `inputs`: files, folders of parquet files, or folders of `save_to_disk`.

    Raises:
        UserError: an input does not exist, or has no such split or no data file.
    """
    return [file for path in inputs for file in _files_of(path, split)]


def _files_of(path: Path, split: str) -> list[Path]:
    if path.is_file() and path.suffix == ".parquet":
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} is neither a .parquet file nor a folder of `save_to_disk` or of parquet files")
    if (path / "dataset_dict.json").is_file():
        splits = read_json(path / "dataset_dict.json")["splits"]
        return _files_of(path / _check_split(split, splits, path), split)
    if (path / "state.json").is_file():
        return [path / entry["filename"] for entry in read_json(path / "state.json")["_data_files"]]
    shards = {file: _SHARD.match(file.name) for file in sorted(path.glob("*.parquet"))}
    if not shards:
        raise UserError(f"{path} has neither the state.json of `save_to_disk` nor parquet files")
    if not all(shards.values()):
        return list(shards)
    chosen = _check_split(split, sorted({match[1] for match in shards.values()}), path)
    return [file for file, match in shards.items() if match[1] == chosen]


def _check_split(split: str, splits: list[str], path: Path) -> str:
    if split not in splits:
        raise UserError(f"{path} has no split {split!r} but {', '.join(splits)}; choose one with --split")
    return split


def rows(job: ConversionJob) -> Iterator[Converted | Skipped]:
    if job.image_root is None:
        raise UserError("hf writes the images to files: give their folder with --image-root")
    number = 0
    for path in job.inputs:
        for row in _stored_rows(path, job):
            number += 1
            yield from _convert(job, f"{path.name} row {number}", number, row)


def _stored_rows(path: Path, job: ConversionJob) -> Iterator[dict[str, Any]]:
    require("pyarrow")
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            file = pyarrow.parquet.ParquetFile(path)
            total, batches = file.metadata.num_rows, file.iter_batches(ROWS)
        else:
            with pyarrow.memory_map(str(path)) as stored:
                total = sum(batch.num_rows for batch in pyarrow.ipc.open_stream(stored))
            batches = _slices(pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))))
        size = path.stat().st_size
        for batch in batches:
            yield from batch.to_pylist()
            job.advance(size * batch.num_rows // total)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}; download it again") from None


def _slices(batches: Any) -> Iterator[Any]:
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            yield batch.slice(start, ROWS)


def _convert(job: ConversionJob, where: str, number: int, row: dict[str, Any]) -> Iterator[Converted | Skipped]:
    text_column = pick_column(row, job.caption_column, TEXT_COLUMNS, "--caption-column", where)
    names = ("images", *IMAGE_COLUMNS, "jpg", "png")
    image_column = pick_column(row, job.image_column, names, "--image-column", where)
    name = source_id(row) or f"{job.out.stem}_{number}"
    try:
        stored = row[image_column]
        images = [
            _write_image(job, number, n, p) for n, p in enumerate(stored if isinstance(stored, list) else [stored]) if p
        ]
        texts = row[text_column]
        if isinstance(texts, list) and texts and isinstance(texts[0], dict):
            yield Converted(where, _conversation(name, images, texts))
            return
        captions = texts if isinstance(texts, list) else [texts]
        if len(images) != 1:
            raise UnusableItem("a caption needs one image", f"{len(images)} images")
        for n, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise UnusableItem(f"no text in `{text_column}`", caption)
            yield Converted(
                where, caption_record(job, f"{name}_{n}" if len(captions) > 1 else name, images[0], caption)
            )
    except UnusableItem as problem:
        yield Skipped(where, name, problem.reason, problem.detail)


def _conversation(name: str, refs: list[str], stored: list[dict[str, Any]]) -> dict[str, Any]:
    """A record. Images go before the first question unless the text has placeholders."""
    turns = [turn for entry in stored for turn in _turns_of(entry)]
    questions = [turn for turn in turns if turn["from"] == "human"]
    if refs and questions and not any(IMAGE_PLACEHOLDER in turn["value"] for turn in questions):
        questions[0]["value"] = f"{IMAGE_PLACEHOLDER}\n" * len(refs) + questions[0]["value"]
    images = {"image": refs[0] if len(refs) == 1 else refs} if refs else {}
    return {"id": name, **images, "conversations": turns}


def _turns_of(entry: dict[str, Any]) -> list[dict[str, str]]:
    if "user" in entry and "assistant" in entry:
        return make_turns((_text_of(entry["user"]), _text_of(entry["assistant"])))
    name = speaker_name(entry.get("from") or entry.get("role"), entry)
    return [{"from": name, "value": _text_of(entry.get("value") or entry.get("content"))}]


def _text_of(content: Any) -> str:
    """Text of a turn: a string, or the text parts of a chat message with `<image>` for image parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UnusableItem("a turn without text", content)
    turns = ""
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("image", "text"):
            raise UnusableItem("a part that is neither text nor image", part)
        turns += f"{IMAGE_PLACEHOLDER}\n" if kind == "image" else plain_text(part.get("text") or "")
    return turns


def _write_image(job: ConversionJob, row: int, number: int, stored: Any) -> str:
    """Path of the image below the image root. The file is written if missing; another image is never overwritten."""
    data = stored.get("bytes") if isinstance(stored, dict) else stored
    if data is None or isinstance(data, str):  # not embedded: a file path
        return data or stored.get("path") or ""
    if not isinstance(data, bytes):
        raise UnusableItem("no image", stored)
    try:
        extension = extension_of(data, str(number))
    except UserError as error:
        raise UnusableItem("broken image", str(error)) from None
    name = f"{job.out.stem}/{row // 10000:04d}/{row:08d}_{number}.{extension}"
    path = job.image_root / name
    if path.is_file() and path.stat().st_size:  # an empty file is the result of a crash
        if path.read_bytes() != data:
            raise UserError(f"{path} is another image; choose another --image-root, or another name for --out")
        return name
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(data)
    aside.replace(path)
    return name
