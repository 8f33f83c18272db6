"""One folder per class: `dogs/rex.jpg` is an image of the class "dogs"."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from mmchat.data.image_refs import ImageFile
from mmchat.errors import UserError
from mmchat.images import IMAGE_SUFFIXES, is_junk, walk_images

_SPLIT = re.compile(
    r"(train|training|val|valid|validation|test|testing|dev|eval|evaluation)([-_ ]?(set|data|\d+))?", re.I
)


class ClassFolders:
    """A table of images, sorted by class and file name. Images may be at any depth below their class folder.

    Links are followed: the user laid out the folder. (The paths of records, which come with the data, may not leave
    their root.)

    Raises:
        UserError: A class folder has no image, an image is outside every class folder, or the folders are splits.
    """

    def __init__(self, path: str) -> None:
        self._root = Path(path)
        stray = sorted(
            p.name for p in self._root.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not is_junk(p.name)
        )
        if stray:
            raise UserError(
                f"{path} holds {len(stray)} images outside its class folders ({stray[0]}); move them into one"
            )
        folders = _folders(self._root)
        _refuse_splits(path, folders)
        self._rows: list[tuple[str, Path]] = []
        self.others: Counter[str] = Counter()
        """Files that are not images, by their ending."""
        for folder in folders:
            found = walk_images(folder)
            if not found.images:
                left_out = f" ({words})" if (words := found.others_in_words()) else ""
                raise UserError(f"{folder} holds no image{left_out}; remove the folder, or add images")
            self._rows += [(folder.name, image) for image in found.images]
            self.others += found.others
        self.files = [str(image) for _, image in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> tuple[str, Any]:
        label, image = self._rows[index]
        target = image.resolve()
        return str(image), {
            "id": image.relative_to(self._root).as_posix(),
            "image": ImageFile(str(target.parent), target.name),
            "label": label,
        }


def holds_class_folders(path: str) -> bool:
    return Path(path).is_dir() and bool(_folders(Path(path)))


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not is_junk(p.name))


def _refuse_splits(path: str, folders: list[Path]) -> None:
    """Refuse `train/cat`, `val/cat`: the classes would be called "train" and "val"."""
    splits = [folder for folder in folders if _SPLIT.fullmatch(folder.name)]
    nested = [folder for folder in splits if _folders(folder)]
    if nested or (splits and len(splits) == len(folders)):
        named = " or ".join(map(str, nested or splits))
        raise UserError(
            f"{path} holds the splits {', '.join(f.name for f in splits)}, not one folder per class; name {named}"
        )
