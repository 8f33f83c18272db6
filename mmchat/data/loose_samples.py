"""Samples as loose files: `00000/000000017.jpg` with `.txt` and `.json` of the same name, in numbered folders.

img2dataset writes them as `--output_format files` (img2dataset/writer.py, FilesSampleWriter), each folder beside its
table and statistics, which hold no more.
"""

import json
import re
from pathlib import Path
from typing import Any

from mmchat.data import storage
from mmchat.data.image_refs import ImageFile
from mmchat.data.records import Rejected
from mmchat.data.row_layouts.shard_members import KEY, is_image
from mmchat.errors import UserError

_NUMBERED = re.compile(r"\d{4,}")
_TEXTS = ("txt", "json")


class LooseSamples:
    """A table of the samples in the numbered folders of a folder, sorted by folder and name."""

    def __init__(self, path: str) -> None:
        self._samples: list[tuple[Path, list[str]]] = []
        """Path without ending, and endings."""
        for folder in _numbered_folders(path):
            found: dict[str, list[str]] = {}
            for file in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
                stem, _, suffix = file.name.rpartition(".")
                if is_image(suffix) or suffix in _TEXTS:
                    found.setdefault(stem, []).append(suffix)
            self._samples += [(folder / stem, suffixes) for stem, suffixes in found.items()]
        self.files = [f"{stem}.{suffix}" for stem, suffixes in self._samples for suffix in suffixes]

    def __len__(self) -> int:
        return len(self._samples)

    def row(self, index: int) -> tuple[str, Any]:
        stem, suffixes = self._samples[index]
        where, sample = str(stem), {KEY: stem.name}
        try:
            for suffix in suffixes:
                sample[suffix] = _content(stem, suffix)
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 text: {error.reason} at byte {error.start + 1}"
            return where, Rejected(where, stem.name, problem, "not_utf8", error.object.decode("utf-8", "replace"))
        except UserError as error:
            return where, Rejected(where, stem.name, str(error), error.kind)
        except (ValueError, RecursionError) as error:
            return where, Rejected(where, stem.name, f"its .json is not an object: {error}", "invalid_json")
        return where, sample


def holds_loose_samples(path: str) -> bool:
    """Whether numbered folders hold texts beside their images."""
    folder = next(iter(_numbered_folders(path)), None)
    if folder is None:
        return False
    names = {p.name for p in folder.iterdir()}
    stems = {name.rpartition(".")[0] for name in names if is_image(name.rpartition(".")[2])}
    return any(f"{stem}.{suffix}" in names for stem in stems for suffix in _TEXTS)


def _numbered_folders(path: str) -> list[Path]:
    root = Path(path)
    return sorted(p for p in root.iterdir() if p.is_dir() and _NUMBERED.fullmatch(p.name)) if root.is_dir() else []


def _content(stem: Path, suffix: str) -> Any:
    file = f"{stem}.{suffix}"
    if is_image(suffix):
        return ImageFile(str(stem.parent), Path(file).name)
    data = storage.read_bytes(file).decode("utf-8")
    return json.loads(data) if suffix == "json" else data.strip()
