"""The weights in a directory or a file, read without running code that they may hold."""

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
from mmchat.opening import CONFIG, read_model_config
from mmchat.pretrained import files_in_index
from mmchat.vision.checkpoint_formats.known_hashes import TORCHSCRIPT_SHA256
from mmchat.vision.checkpoint_formats.megatron_ranks import numbers_in, rank_files

PICKLED = (".bin", ".pt", ".pth")
READ_BY_TRANSFORMERS = ("model.safetensors", "pytorch_model.bin")
"""Names of a model's weights in a directory of transformers, in the order in which it looks for them. Each may instead
be an index of shards (transformers, modeling_utils.py, `_get_resolved_checkpoint_files`)."""
WRAPPERS = ("state_dict", "model")
"""Keys of the state dict in files that hold more (open_clip; Megatron, SAM)."""
ARGUMENTS = "args"
"""Key of the run's arguments in Megatron's files."""


class WeightFiles:
    """The weights in a directory or a file. They are read on first use.

    In a directory they are the files that transformers reads, if there are any: open_clip's weights, or a projector
    alone, may lie beside them. Else they are all safetensors, else all files that torch saved.

    Args:
        path: Directory or file.
        trusted: Whether TorchScript archives of unknown origin may be opened. Such an archive is a program.
    """

    def __init__(self, path: Path, trusted: bool = False) -> None:
        self.path, self.trusted = path, trusted

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json` of a directory, or empty."""
        return read_model_config(self.path) if (self.path / CONFIG).exists() else {}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape of every tensor. Formats are recognised by it."""
        shapes: dict[str, tuple[int, ...]] = {}
        for file in self._safetensors:
            with self._open_safetensors(file) as tensors:
                for key in tensors.keys():  # noqa: SIM118  (not a dict)
                    shapes[key] = tuple(tensors.get_slice(key).get_shape())
        for tensors in self._pickled:
            shapes |= {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        return shapes

    def tensors(self, prefix: str = "", without: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
        """The tensors whose keys start with `prefix`, without it.

        Args:
            prefix: Prefix of the keys.
            without: Prefixes of keys to leave out.

        Raises:
            UserError: Several files hold the same key, so they are ranks that must be merged.
        """

        def wanted(key: str) -> bool:
            return key.startswith(prefix) and not key.startswith(without)

        counts = Counter(key for tensors in self._pickled for key in tensors if wanted(key))
        if repeated := [key for key, count in counts.items() if count > 1]:
            raise UserError(f"several files in {self.path} hold {repeated[0]}; name one of the files")
        found = {key: tensor for tensors in self._pickled for key, tensor in tensors.items() if key in counts}
        for file in self._safetensors:
            with self._open_safetensors(file) as tensors:
                keys = [key for key in tensors.keys() if wanted(key)]  # noqa: SIM118
                found |= {key: tensors.get_tensor(key) for key in keys}
        return {key.removeprefix(prefix): tensor for key, tensor in found.items()}

    @property
    def shards(self) -> list[dict[str, torch.Tensor]]:
        """All tensors: one dict for each pickled file, in order of rank, or one for all safetensors."""
        return self._pickled or [self.tensors()]

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the run that wrote the first file, or empty."""
        values = self._loaded[0] if self._loaded else {}
        arguments = values.get(ARGUMENTS) if isinstance(values, dict) else None
        return vars(arguments) if isinstance(arguments, argparse.Namespace) else {}

    @cached_property
    def _files(self) -> list[Path]:
        """Files with weights, all of one kind."""
        if not self.path.is_dir():
            return [self.path] if self.path.suffix in (".safetensors", *PICKLED) else []
        if found := files_of_transformers(self.path) or sorted(self.path.glob("*.safetensors")):
            return found
        pickled = [file for file in self.path.iterdir() if file.suffix in PICKLED] or rank_files(self.path)
        return sorted(pickled, key=lambda file: (numbers_in(file), file))

    @property
    def _safetensors(self) -> list[Path]:
        return [file for file in self._files if file.suffix == ".safetensors"]

    @cached_property
    def _pickled(self) -> list[dict[str, torch.Tensor]]:
        return [flat_tensors(values) for values in self._loaded]

    @cached_property
    def _loaded(self) -> list[Any]:
        """Contents of each pickled file."""
        return [self._read_pickled(file) for file in self._files if file.suffix != ".safetensors"]

    def _read_pickled(self, file: Path) -> Any:
        if is_torchscript(file):
            return self._read_torchscript(file)
        try:
            # Unpickling a Namespace sets attributes and runs no code.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except Exception as error:  # many types: truncated files, other formats, pickled code
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{file} cannot be opened as plain tensors: {reason}. If it is complete and holds other objects, save "
                'only the tensors with the program that wrote it: torch.save({"model": model.state_dict()}, path)'
            ) from None

    def _read_torchscript(self, file: Path) -> dict[str, torch.Tensor]:
        digest = sha256(file)
        if digest not in TORCHSCRIPT_SHA256 and not self.trusted:
            raise UserError(
                f"{file} is a TorchScript archive, which is a program, and OpenAI did not publish it (its sha256 is "
                f"{digest}); if you trust its origin, add --trust-torchscript"
            )
        return dict(torch.jit.load(file, map_location="cpu").state_dict())

    def _open_safetensors(self, file: Path) -> Any:
        try:
            return safe_open(file, framework="pt")
        except SafetensorError as error:
            raise UserError(f"the weights in {file} are damaged or cut off: {error}") from None
        except OSError as error:  # a link to nowhere, a folder, no permission
            raise UserError(f"the weights in {file} cannot be read: {error}") from None


def files_of_transformers(directory: Path) -> list[Path]:
    """The files of weights that transformers reads in a directory, or none.

    Raises:
        UserError: An index names a file that is not in the directory.
    """
    for name in READ_BY_TRANSFORMERS:
        if (directory / name).exists():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if index.exists():
            return files_in_index(index)
    return []


def flat_tensors(values: Any) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, unwrapped if they are below a key of `WRAPPERS`. Other values are dropped."""
    for _ in WRAPPERS:  # not more often: a pickled dict may hold itself
        if isinstance(values, dict):
            values = next((values[key] for key in WRAPPERS if values.get(key) is not None), values)
    if not isinstance(values, dict):
        return {}
    return {key: value for key, value in values.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive: these hold code beside tensors."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
