"""An image whose path is spelled otherwise in the data than on the disk.

macOS stores names in Unicode's decomposed form (NFD), JSON has mostly the composed one (NFC); Windows separates
folders with backslashes. If exactly one file differs only in that, it is the one. A name in another case is a guess:
the message says that it is there.
"""

import contextlib
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from mmchat.errors import UserError
from mmchat.images import resolve_inside

Form = Callable[[str], str]


def spelled_as_on_disk(root: str, path: str) -> str:
    """The path below `root` of the one file that `path`, which does not exist there, can mean.

    Raises:
        UserError: There is none. The message names the file that differs in case, if there is one.
    """
    found = _find(root, path, _composed) or _find(root, path.replace("\\", "/"), _composed)
    if found is not None:
        return found
    missing = f"image {resolve_inside(Path(root), path)} does not exist"
    other = _find(root, path.replace("\\", "/"), _caseless)
    if other is not None:
        missing += f"; there is {other!r}, whose name differs only in upper and lower case: rename one of the two"
    raise UserError(missing, "missing_image")


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _find(root: str, path: str, form: Form) -> str | None:
    """The file below `root` whose path is the same in a form of its names; None if there is none, or several."""
    folder = top = Path(root).resolve()
    relative = Path(path)
    with contextlib.suppress(OSError, ValueError):
        relative = relative.relative_to(top) if relative.is_absolute() else relative
        for part in relative.parts:
            names = _names(str(folder), folder.stat().st_mtime_ns, form).get(form(part), [])
            names = [part] if part in names else names
            if len(names) != 1:
                return None
            folder = folder / names[0]
        found = folder.relative_to(top).as_posix()
        return found if resolve_inside(top, found).is_file() else None
    return None


@lru_cache(maxsize=64)
def _names(folder: str, changed: int, form: Form) -> dict[str, list[str]]:
    """Names in a folder by their form. Kept until it changes, so that many missing images cost one listing."""
    found: dict[str, list[str]] = {}
    for entry in Path(folder).iterdir():
        found.setdefault(form(entry.name), []).append(entry.name)
    return found
