"""The same records in every storage, for tests that expect identical results."""

import csv
import io
import json
import tarfile
from pathlib import Path


def write_json(path: Path, items: list, indent: int | None = None) -> Path:
    path.write_text(json.dumps(items, ensure_ascii=False, indent=indent), encoding="utf-8")
    return path


def write_jsonl(path: Path, items: list) -> Path:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return path


def write_parquet(path: Path, items: list, root: Path) -> Path:
    """Hugging Face's layout: images embedded as bytes, conversations as a list of structs."""
    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            "id": item["id"],
            "images": [{"bytes": (root / name).read_bytes(), "path": name} for name in images_of(item)],
            "conversations": item["conversations"],
        }
        for item in items
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    return path


def write_tar(path: Path, items: list, root: Path) -> Path:
    """As the webdataset package writes it: key.json and key.png, or key.0.png, key.1.png."""
    with tarfile.open(path, "w") as tar:
        for number, item in enumerate(items):
            names = images_of(item)
            add(tar, f"{number:04}.json", json.dumps(item).encode())
            for place, name in enumerate(names):
                middle = f"{place}." if len(names) > 1 else ""
                add(tar, f"{number:04}.{middle}png", (root / name).read_bytes())
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, dialect="excel-tab" if path.suffix == ".tsv" else "excel").writerows(rows)
    return path


def images_of(item: dict) -> list[str]:
    names = item.get("image", [])
    return [names] if isinstance(names, str) else names
