"""The models of a demo: opened when first asked, a few at a time."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmchat.errors import UserError


class Models:
    """Local model directories by short names.

    Args:
        directories: Model directories, the first is asked by default.
        open_model: Opens one: a `Generator`.
        keep: Most models in memory. The one that was not used for longest is closed first, never while it answers.

    Raises:
        UserError: A directory does not exist.
    """

    def __init__(self, directories: Sequence[Path], open_model: Callable[[Path], Any], keep: int = 2) -> None:
        for directory in directories:
            if not directory.is_dir():
                raise UserError(
                    f"model directory {directory} does not exist; run scripts/quickstart.sh to train one, or set "
                    "--model"
                )
        self.directories = dict(zip(short_names(directories), directories, strict=True))
        self._open_model, self._keep = open_model, keep
        self._opened: dict[str, Any] = {}  # the last used is last
        self._users: dict[str, int] = {}
        self._changed = threading.Condition()
        self._opening = threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self.directories)

    @contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """The generator of a model, opened if it is not, and kept open meanwhile.

        Raises:
            UserError: There is no such model, or it cannot be opened.
        """
        generator = self._take(name)
        try:
            yield generator
        finally:
            with self._changed:
                self._users[name] -= 1
                self._changed.notify_all()

    def _take(self, name: str) -> Any:
        if name not in self.directories:
            raise UserError(f"there is no model {name}; choose one of {', '.join(self.names)}")
        if (generator := self._reserve(name)) is not None:
            return generator
        with self._opening:  # one at a time
            if (generator := self._reserve(name)) is not None:
                return generator
            self._make_room()
            generator = self._open_model(self.directories[name])
            with self._changed:
                self._opened[name] = generator
                self._users[name] = 1
            return generator

    def _reserve(self, name: str) -> Any:
        with self._changed:
            if name not in self._opened:
                return None
            self._opened[name] = self._opened.pop(name)
            self._users[name] += 1
            return self._opened[name]

    def _make_room(self) -> None:
        """Close models until there is room for one. Waits for a minute if all are answering."""
        while True:
            with self._changed:
                if len(self._opened) < self._keep:
                    return
                idle = next((name for name in self._opened if not self._users[name]), None)
                if idle is None:
                    if not self._changed.wait(60):
                        raise UserError(f"all {self._keep} open models are answering; try again later")
                    continue
                generator = self._opened.pop(idle)
            generator.close()


def short_names(directories: Sequence[Path]) -> list[str]:
    """A name for each directory: `runs/quickstart/model` is "quickstart"; equal names get their whole path."""
    names = []
    for directory in directories:
        resolved = directory.resolve()
        names.append(resolved.parent.name if resolved.name in ("model", "hf") else resolved.name)
    return [
        name if names.count(name) == 1 and name else str(path) for name, path in zip(names, directories, strict=True)
    ]
