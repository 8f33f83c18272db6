"""A folder for each class, with its pictures in it: `dogs/rex.jpg` is a picture of the class "dogs"."""

from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.images import IMAGE_SUFFIXES


class ClassFolders:
    """Pictures by number, class by class and each in the order of its files' names; at any depth below its class."""

    def __init__(self, path: str) -> None:
        self._root = Path(path)
        self.classes = sorted(folder.name for folder in self._root.iterdir() if folder.is_dir())
        by_class = {name: _pictures(self._root / name) for name in self.classes}
        if empty := [name for name, pictures in by_class.items() if not pictures]:
            raise UserError(
                f"{path} is read as a folder of classes, but there is no picture in {', '.join(empty[:8])}"
                f"{', ...' if len(empty) > 8 else ''}; remove what is no class, or put pictures there "
                f"({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        self._rows = [(name, picture) for name, pictures in by_class.items() for picture in pictures]
        self.files = [str(picture) for _, picture in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> tuple[str, Any]:
        label, picture = self._rows[index]
        name = picture.relative_to(self._root).as_posix()
        return str(picture), {"id": name, "image": name, "label": label}


def holds_class_folders(path: str) -> bool:
    """Whether there is a picture in a folder of this folder."""
    root = Path(path)
    return root.is_dir() and any(_pictures(folder) for folder in root.iterdir() if folder.is_dir())


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
