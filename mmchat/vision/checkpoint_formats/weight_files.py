"""Where a tower comes from: a directory or a file, looked into without running anything that it holds."""

import argparse
import hashlib
import zipfile
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.vision.checkpoint_formats.known_hashes import TORCHSCRIPT
from mmchat.vision.checkpoint_formats.megatron_ranks import numbers_in, rank_files

PICKLED = (".bin", ".pt", ".pth")
WRAPPERS = ("state_dict", "model")
"""Keys under which training programs keep the tensors of a file that holds more (open_clip; Megatron, SAM)."""
ARGUMENTS = "args"
"""Key under which Megatron keeps those of the run beside the model."""


class WeightFiles:
    """One place with weights; nothing is read before it is asked for.

    path: a directory or a file. trusted: a TorchScript archive of unknown origin may be opened.
    """

    def __init__(self, path: Path, trusted: bool = False) -> None:
        self.path, self.trusted = path, trusted

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json` of a directory; empty where there is none."""
        path = self.path / "config.json"
        return read_json(path) if path.exists() else {}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor: what a layout is recognised by."""
        shapes: dict[str, tuple[int, ...]] = {}
        for file in self._safetensors:
            with self._opened(file) as tensors:
                for key in tensors.keys():  # noqa: SIM118  (no dict)
                    shapes[key] = tuple(tensors.get_slice(key).get_shape())
        for tensors in self._pickled:
            shapes |= {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        return shapes

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """The tensors whose names begin with `prefix`, by what follows it.

        Raises:
            UserError: several files hold the same ones, so they are parts that must be joined.
        """
        times = Counter(key for tensors in self._pickled for key in tensors if key.startswith(prefix))
        if twice := [key for key, count in times.items() if count > 1]:
            raise UserError(f"several files in {self.path} hold {twice[0]}: name the one that is meant")
        found = {key: tensor for tensors in self._pickled for key, tensor in tensors.items() if key in times}
        for file in self._safetensors:
            with self._opened(file) as tensors:
                own = [key for key in tensors.keys() if key.startswith(prefix)]  # noqa: SIM118
                found |= {key: tensors.get_tensor(key) for key in own}
        return {key.removeprefix(prefix): tensor for key, tensor in found.items()}

    @property
    def shards(self) -> list[dict[str, torch.Tensor]]:
        """All tensors, file by file where torch wrote them: in order, the ranks of a model that was split."""
        return self._pickled or [self.tensors()]

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of the run that wrote the first file; empty where it does not hold any."""
        values = self._loaded[0] if self._loaded else {}
        arguments = values.get(ARGUMENTS) if isinstance(values, dict) else None
        return vars(arguments) if isinstance(arguments, argparse.Namespace) else {}

    @cached_property
    def _safetensors(self) -> list[Path]:
        if self.path.is_dir():
            return sorted(self.path.glob("*.safetensors"))
        return [self.path] if self.path.suffix == ".safetensors" else []

    @cached_property
    def _pickled(self) -> list[dict[str, torch.Tensor]]:
        return [flat_tensors(values) for values in self._loaded]

    @cached_property
    def _loaded(self) -> list[Any]:
        """Of each file that torch wrote, where there are no safetensors."""
        if self._safetensors:
            return []
        if not self.path.is_dir():
            return [self._read_pickled(self.path)] if self.path.suffix in PICKLED else []
        files = [file for file in self.path.iterdir() if file.suffix in PICKLED] or rank_files(self.path)
        return [self._read_pickled(file) for file in sorted(files, key=lambda file: (numbers_in(file), file))]

    def _read_pickled(self, file: Path) -> Any:
        if is_torchscript(file):
            return self._read_torchscript(file)
        try:
            # A Namespace has no code of its own: unpickling one sets its attributes.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except Exception as error:  # torch raises a dozen kinds for files that are cut off, no archives, or hold code
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{file} cannot be opened as plain tensors: {reason}. If it is whole and holds more than tensors, save "
                'those alone with the program that wrote it: torch.save({"model": model.state_dict()}, path)'
            ) from None

    def _read_torchscript(self, file: Path) -> dict[str, torch.Tensor]:
        digest = sha256(file)
        if digest not in TORCHSCRIPT and not self.trusted:
            raise UserError(
                f"{file} is a TorchScript archive, which is a program, and none that OpenAI published (its sha256 is "
                f"{digest}); if you know where it is from, say so with --trust-torchscript"
            )
        return dict(torch.jit.load(file, map_location="cpu").state_dict())

    def _opened(self, file: Path) -> Any:
        try:
            return safe_open(file, framework="pt")
        except SafetensorError as error:
            raise UserError(f"the weights in {file} are damaged or cut off: {error}") from None


def flat_tensors(values: Any) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by their names, out of the wrapper that it may be in. What is no tensor is left."""
    while isinstance(values, dict) and (inner := next((values[k] for k in WRAPPERS if k in values), None)) is not None:
        values = inner
    if not isinstance(values, dict):
        return {}
    return {key: value for key, value in values.items() if isinstance(value, torch.Tensor)}


def is_torchscript(file: Path) -> bool:
    """TorchScript's archives hold their program beside the tensors."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
