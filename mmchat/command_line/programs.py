"""Runs a Python file that is a program with `main(argv)`, as `python FILE ARGUMENTS` does, in this process."""

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
    saved_argv = sys.argv
    sys.path.insert(0, str(path.parent))
    sys.argv = [name, *argv]
    try:
        import_module(path.stem).main(argv)
    finally:
        sys.path.remove(str(path.parent))
        sys.argv = saved_argv
    return 0
