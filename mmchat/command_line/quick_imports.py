"""Imports of torch and transformers without garbage collection, which takes a fifth of their time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Inside the `with`, import what the program needs to the end; open nothing.

    An import makes hundreds of thousands of objects and drops few. The collector would look through them again and
    again. Afterwards it leaves them alone, which also spares forked data workers a copy of them.
    """
    if "torch" in sys.modules:  # a part of another program, whose collector is not ours
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
