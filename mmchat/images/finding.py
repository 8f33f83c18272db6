"""Image files in folders, and paths below a root. A path of a record is untrusted: it may leave the root."""

from collections.abc import Set
from pathlib import Path

from mmchat.errors import UserError
from mmchat.images.formats import IMAGE_SUFFIXES


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
    path = (root / relative).resolve()
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
            inside = (p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            found.update(dict.fromkeys(sorted(inside)))
        elif path.exists():
            found[path] = None
        else:
            raise UserError(f"{path} does not exist; expected an image file or a folder of images")
    if not found:
        looked_for = ", ".join(sorted(suffixes))
        raise UserError(f"no image found in {', '.join(map(str, paths))} (looked for {looked_for})")
    return list(found)
