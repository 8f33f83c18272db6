"""Runs a program that is a Python file of its own with `main(argv, prog)`, in this process."""

import sys
from importlib import import_module
from pathlib import Path


def run_program(path: Path, name: str, argv: list[str]) -> int:
    """Import the file with its folder on sys.path and call its `main`.

    Args:
        path: the Python file.
        name: what its help and messages call it.
        argv: its arguments.

    Returns:
        0. A program that fails raises.
    """
    sys.path.insert(0, str(path.parent))
    try:
        import_module(path.stem).main(argv, name)
    finally:
        sys.path.remove(str(path.parent))
    return 0
