"""Image files in folders, and paths below a root. A path of a record is untrusted: it may leave the root."""

import os
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

from mmchat.errors import UserError
from mmchat.images.formats import IMAGE_SUFFIXES

_JUNK = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"})


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name was left by a system: hidden ones (`._1.png`, `.ipynb_checkpoints`), and
    those of archives, servers and bins."""
    return name.startswith(".") or name in _JUNK


@dataclass
class FolderImages:
    """The image files below a folder.

    Attributes:
        images: Sorted.
        others: The other files by their ending, junk excepted.
    """

    images: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def others_in_words(self) -> str:
        """As "3 files that are not images (.pdf 2, .txt 1)"; empty if there are none."""
        listed = ", ".join(f"{suffix or 'no ending'} {count:,}" for suffix, count in self.others.most_common(8))
        total = self.others.total()
        return f"{total:,} file{'s' * (total != 1)} that are not images ({listed})" if total else ""


def walk_images(folder: Path, suffixes: Set[str] = IMAGE_SUFFIXES) -> FolderImages:
    """Find the image files below a folder. Links to folders are followed, each folder once; junk is left out."""
    found = FolderImages()
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        stat = Path(place).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not is_junk(name))
        for path in (Path(place, name) for name in files if not is_junk(name)):
            if path.suffix.lower() in suffixes and path.is_file():
                found.images.append(path)
            else:
                found.others[path.suffix.lower()] += 1
    found.images.sort()
    return found


def resolve_inside(root: Path, relative: str) -> Path:
    """The absolute path of `relative` below `root`, with links resolved.

    Raises:
        UserError: The path leaves `root` (`..`, an absolute path, or a link that points outside).
    """
    root = root.resolve()
    if "\0" in relative:
        raise UserError(
            f"image path {relative!r} holds a null character, which is not allowed in a path", "missing_image"
        )
    try:
        path = (root / relative).resolve()
    except RuntimeError:  # Python 3.11 and 3.12; later ones resolve such a link to itself
        raise UserError(f"image path {relative!r} is a link that points at itself", "missing_image") from None
    if not path.is_relative_to(root):
        raise UserError(
            f"image path {relative!r} leaves the image root {root}; "
            "give a path below it, or name a root that holds all images",
            kind="path_outside_root",
        )
    return path


def find_images(paths: list[Path], suffixes: Set[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Find image files, in a stable order, each once.

    Args:
        paths: Files, taken as they are, and folders, searched recursively.
        suffixes: Lower-case suffixes of the files to take from folders.

    Raises:
        UserError: A path does not exist, or no image was found.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found.update(dict.fromkeys(walk_images(path, suffixes).images))
        elif path.exists():
            found[path] = None
        else:
            raise UserError(f"{path} does not exist; expected an image file or a folder of images")
    if not found:
        looked_for = ", ".join(sorted(suffixes))
        raise UserError(f"no image found in {', '.join(map(str, paths))} (looked for {looked_for})")
    return list(found)
