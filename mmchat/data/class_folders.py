"""One folder per class: `dogs/rex.jpg` is an image of the class "dogs"."""

from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.images import IMAGE_SUFFIXES


class ClassFolders:
    """A table of images, sorted by class and file name. Images may be at any depth below their class folder.

    Raises:
        UserError: A class folder has no image, or an image is outside every class folder.
    """

    def __init__(self, path: str) -> None:
        self._root = Path(path)
        stray = sorted(p.name for p in self._root.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if stray:
            raise UserError(
                f"{path} holds {len(stray)} images outside its class folders ({stray[0]}); move them into one"
            )
        self._rows = [(folder.name, image) for folder in _folders(self._root) for image in _images(folder)]
        self.files = [str(image) for _, image in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> tuple[str, Any]:
        label, image = self._rows[index]
        name = image.relative_to(self._root).as_posix()
        return str(image), {"id": name, "image": name, "label": label}


def holds_class_folders(path: str) -> bool:
    return Path(path).is_dir() and bool(_folders(Path(path)))


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir())


def _images(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not found:
        raise UserError(f"{folder} holds no image; remove the folder, or add images")
    return found
