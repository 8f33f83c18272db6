"""`clean.npz`: the records of a source in which `mmchat data check` found no error."""

import io
import zipfile
from pathlib import Path

import numpy as np

from mmchat.data.sources import Source
from mmchat.errors import UserError
from mmchat.files import write_bytes


def save_clean_index(path: Path, source: Source, keep: np.ndarray) -> None:
    """Write the numbers of the clean records, int64[n], with a hash of the data they refer to."""
    buffer = io.BytesIO()
    np.savez(buffer, keep=keep, digest=np.frombuffer(source.digest().encode(), np.uint8))
    write_bytes(path, buffer.getvalue())


def load_clean_index(path: Path, source: Source) -> np.ndarray:
    """Read the numbers of the clean records of `source`.

    Returns:
        int64[n], ascending.

    Raises:
        UserError: The file is missing, is not a clean index, or was made from other data.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            keep, digest = stored["keep"], stored["digest"].tobytes().decode()
    except FileNotFoundError:
        raise UserError(f"index {path} does not exist; make it with `mmchat data check {source.name}`") from None
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"index {path} was not written by `mmchat data check`: {error}") from None
    if digest != source.digest():
        raise UserError(f"index {path} was made from other data than {source.name} holds now; run the check again")
    return keep
