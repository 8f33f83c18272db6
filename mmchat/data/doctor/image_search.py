"""Where the images of a data set may be, if a check found none of them."""

import os
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from mmchat.data import storage
from mmchat.data.doctor.inputs import CheckedSource
from mmchat.data.doctor.outputs import Tally
from mmchat.data.doctor.partial_results import RecordStats

MOST_FILES = 50_000
"""Files that are looked at: a search must not take longer than the check."""


class FoundImage(NamedTuple):
    """An image that a record names and that lies in another folder.

    Attributes:
        entry: The path in the record.
        file: Where a file of this name is.
        root: The folder from which `entry` leads to `file`; None if there is none.
    """

    entry: str
    file: Path
    root: Path | None


def find_images(sources: list[CheckedSource], stats: list[RecordStats], tally: Tally) -> FoundImage | None:
    """Search below the data file for the first images that are missing, if all images of the data are.

    Args:
        sources: What was checked.
        stats: Of each source.
        tally: Its findings. The examples of missing images are searched for.

    Returns:
        The first image found; one whose path in the record fits is preferred.
    """
    missing = [example for example in tally.examples.get("missing_image", []) if example.images]
    if not missing or any(len(one.owner) for one in stats):
        return None
    found: list[FoundImage] = []
    for source in dict.fromkeys(example.images[0][0] for example in missing):
        places = dict.fromkeys(example.images[0][1] for example in missing if example.images[0][0] is source)
        entries = list(chain.from_iterable(source.image_paths(place) for place in places))
        found += _below(_folder(source.config.path), entries)
    return next((one for one in found if one.root), next(iter(found), None))


def _below(folder: Path | None, entries: list[str]) -> list[FoundImage]:
    wanted = {Path(entry).name: entry for entry in reversed(entries)}
    found: list[FoundImage] = []
    looked_at = 0
    for place, folders, files in os.walk(folder) if folder else ():
        folders.sort()
        for name in wanted.keys() & set(files):
            file, parts = Path(place, name), Path(wanted[name]).parts
            fits = file.parts[-len(parts) :] == parts
            found.append(FoundImage(wanted[name], file, Path(*file.parts[: -len(parts)]) if fits else None))
        looked_at += len(files)
        if looked_at > MOST_FILES or len(found) >= len(wanted):
            break
    return found


def _folder(path: str) -> Path | None:
    """The folder of a local data file or pattern."""
    if storage.is_remote(path):
        return None
    return Path(path) if Path(path).is_dir() else Path(path).parent
