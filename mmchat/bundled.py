"""The top-level folders `configs`, `data_tools` and `demo`: in the repository, or inside an installed wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The path of a top-level folder of the repository.

    In a checkout (also an editable install) it is next to the package. The build of a wheel copies it to
    `mmchat/_bundled/`.

    Args:
        name: "configs", "data_tools" or "demo".
    """
    bundled = PACKAGE / "_bundled" / name
    return bundled if bundled.is_dir() else PACKAGE.parent / name
