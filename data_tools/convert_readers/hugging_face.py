"""Hugging Face image-text data sets on disk: what `save_to_disk` wrote, or parquet files.

Read as Arrow, a few rows at a time; images are stored inside as `{"bytes", "path"}` and are written out as files.
The text column holds a caption (or several), the_cauldron's `texts` [{user, assistant}], or a conversation in
LLaVA's {from, value} or the chat {role, content}.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert_readers.captions import CAPTION_COLUMNS, IMAGE_COLUMNS, caption_record, pick_column
from convert_readers.interface import Converted, Job, Skipped, UnusableItem, identity, plain, speaker, turns
from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.files import read_json
from mmchat.images import extension_of

ROWS = 16
"""Held at a time; a row of the_cauldron can hold several photographs."""

TEXT_COLUMNS = ("conversations", "conversation", "messages", "texts", *CAPTION_COLUMNS)
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


def data_files(inputs: list[Path], split: str) -> list[Path]:
    """The parquet and arrow files that `inputs` mean: files, folders of parquet, or folders of `save_to_disk`.

    Raises:
        UserError: nothing there, no such split, or no data file.
    """
    return [file for path in inputs for file in _files_of(path, split)]


def _files_of(path: Path, split: str) -> list[Path]:
    if path.is_file() and path.suffix == ".parquet":
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} is neither a .parquet file nor a folder of `save_to_disk` or of parquet files")
    if (path / "dataset_dict.json").is_file():
        splits = read_json(path / "dataset_dict.json")["splits"]
        return _files_of(path / _chosen(split, splits, path), split)
    if (path / "state.json").is_file():
        return [path / entry["filename"] for entry in read_json(path / "state.json")["_data_files"]]
    shards = {file: _SHARD.match(file.name) for file in sorted(path.glob("*.parquet"))}
    if not shards:
        raise UserError(f"{path} holds neither what `save_to_disk` writes (state.json) nor parquet files")
    if not all(shards.values()):
        return list(shards)
    chosen = _chosen(split, sorted({match[1] for match in shards.values()}), path)
    return [file for file, match in shards.items() if match[1] == chosen]


def _chosen(split: str, splits: list[str], path: Path) -> str:
    if split not in splits:
        raise UserError(f"{path} has no split {split!r} but {', '.join(splits)}; choose one with --split")
    return split


def rows(job: Job) -> Iterator[Converted | Skipped]:
    if job.image_root is None:
        raise UserError("hf writes the images out as files: say below which folder with --image-root")
    number = 0
    for path in job.inputs:
        for row in _stored_rows(path, job):
            number += 1
            yield from _convert(job, f"{path.name} row {number}", number, row)


def _stored_rows(path: Path, job: Job) -> Iterator[dict[str, Any]]:
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
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}; fetch it again") from None


def _slices(batches: Any) -> Iterator[Any]:
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            yield batch.slice(start, ROWS)


def _convert(job: Job, where: str, number: int, row: dict[str, Any]) -> Iterator[Converted | Skipped]:
    text_column = pick_column(row, job.caption_column, TEXT_COLUMNS, "--caption-column", where)
    names = ("images", *IMAGE_COLUMNS, "jpg", "png")
    image_column = pick_column(row, job.image_column, names, "--image-column", where)
    name = identity(row) or f"{job.out.stem}_{number}"
    try:
        stored = row[image_column]
        images = [
            _written(job, number, n, p) for n, p in enumerate(stored if isinstance(stored, list) else [stored]) if p
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
    """Images stand before the first question, unless the text has a place for each of them."""
    said = [turn for entry in stored for turn in _turns_of(entry)]
    asked = [turn for turn in said if turn["from"] == "human"]
    if refs and asked and not any(IMAGE_PLACEHOLDER in turn["value"] for turn in asked):
        asked[0]["value"] = f"{IMAGE_PLACEHOLDER}\n" * len(refs) + asked[0]["value"]
    images = {"image": refs[0] if len(refs) == 1 else refs} if refs else {}
    return {"id": name, **images, "conversations": said}


def _turns_of(entry: dict[str, Any]) -> list[dict[str, str]]:
    if "user" in entry and "assistant" in entry:
        return turns((_words(entry["user"]), _words(entry["assistant"])))
    name = speaker(entry.get("from") or entry.get("role"), entry)
    return [{"from": name, "value": _words(entry.get("value") or entry.get("content"))}]


def _words(content: Any) -> str:
    """A text as it is; of chat parts the texts, with `<image>` where an image stands."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UnusableItem("a turn without text", content)
    said = ""
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("image", "text"):
            raise UnusableItem("a part that is neither text nor image", part)
        said += f"{IMAGE_PLACEHOLDER}\n" if kind == "image" else plain(part.get("text") or "")
    return said


def _written(job: Job, row: int, number: int, stored: Any) -> str:
    """The image's path below the image root. Written if it is not there; never over another image."""
    data = stored.get("bytes") if isinstance(stored, dict) else stored
    if data is None or isinstance(data, str):  # not embedded: the path of a file
        return data or stored.get("path") or ""
    if not isinstance(data, bytes):
        raise UnusableItem("no image", stored)
    try:
        extension = extension_of(data, str(number))
    except UserError as error:
        raise UnusableItem("broken image", str(error)) from None
    name = f"{job.out.stem}/{row // 10000:04d}/{row:08d}_{number}.{extension}"
    path = job.image_root / name
    if path.is_file() and path.stat().st_size:  # an empty one was cut off by a power failure
        if path.read_bytes() != data:
            raise UserError(f"{path} holds another image; choose another --image-root, or another name for --out")
        return name
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(data)
    aside.replace(path)
    return name
