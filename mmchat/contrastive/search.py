"""Image search by text or by image. The embeddings of a folder are kept in one SQLite file.

A batch is one transaction, so indexing can be interrupted and resumed at any time. A query compares all vectors with
scikit-learn: exact, and fast up to a few hundred thousand images.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mmchat.contrastive.embedding import Embedder
from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.files import shown, write_text
from mmchat.html import render
from mmchat.images import data_uri, find_images, load_image
from mmchat.progress import progress_bar

SAME_MODEL = 1e-2
"""Largest difference between coordinates of a vector that one model computes twice, on any device."""
THUMBNAIL_SIDE = 224
"""Longer side of an image on the page, in pixels."""
_TABLES = """
BEGIN;
CREATE TABLE about (checkpoint TEXT, folder BLOB, probe BLOB);
CREATE TABLE images (path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, vector BLOB);
"""
# Paths are bytes, because a file name may not be text.


@dataclass
class IndexSummary:
    """Changes of an index.

    Attributes:
        added: Number of images that were embedded.
        kept: Number of images that had not changed.
        removed: Number of images that no longer exist.
        unreadable: (path, reason) of images that were skipped. The next run tries them again.
    """

    added: int = 0
    kept: int = 0
    removed: int = 0
    unreadable: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Hit:
    """An image that was found. similarity: cosine of the two vectors, -1 to 1."""

    path: Path
    similarity: float


def index_folder(embedder: Embedder, checkpoint: str, folder: Path, out: Path, batch_size: int = 32) -> IndexSummary:
    """Create or update the index of a folder. Only new and changed images are read.

    Args:
        embedder: The model.
        checkpoint: Where it was opened from; stored in the index.
        folder: Folder with images.
        out: The index file.
        batch_size: Number of images per forward.

    Raises:
        UserError: The folder holds no image, or `out` is not an index, or one of another folder or model.
    """
    folder = folder.resolve()
    files = find_images([folder])
    out.parent.mkdir(parents=True, exist_ok=True)
    with _opened(out) as index:
        if not index.execute("SELECT name FROM sqlite_master").fetchall():
            index.executescript(_TABLES)
            metadata = (checkpoint, os.fsencode(folder), fingerprint(embedder).tobytes())
            index.execute("INSERT INTO about VALUES (?, ?, ?)", metadata)
            index.commit()
        _, indexed_folder, stored = _metadata(index)
        if indexed_folder != folder:
            raise UserError(f"{out} is an index of {indexed_folder}, not of {folder}; choose another --out")
        _check_model(out, stored, embedder)
        return _update(index, embedder, folder, files, batch_size)


def _update(
    index: sqlite3.Connection, embedder: Embedder, folder: Path, files: list[Path], batch_size: int
) -> IndexSummary:
    paths = {os.fsencode(path.relative_to(folder)): path for path in files}
    states = {name: _state(path) for name, path in paths.items()}
    known = {name: state for name, *state in index.execute("SELECT path, size, changed FROM images")}
    outdated = [name for name, state in known.items() if states.get(name) != state]
    missing = [name for name in paths if known.get(name) != states[name]]
    summary = IndexSummary(kept=len(known) - len(outdated), removed=sum(name not in paths for name in outdated))
    index.executemany("DELETE FROM images WHERE path = ?", [(name,) for name in outdated])
    index.commit()
    with progress_bar("indexing", len(missing)) as bar:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            images: dict[bytes, Image.Image] = {}
            for name in batch:
                try:
                    images[name] = load_image(paths[name])
                except UserError as error:
                    summary.unreadable.append((paths[name], str(error)))
            if images:
                vectors = embedder.images(list(images.values()))
                rows = [(name, *states[name], vector.tobytes()) for name, vector in zip(images, vectors, strict=True)]
                index.executemany("INSERT INTO images VALUES (?, ?, ?, ?)", rows)
                index.commit()
            summary.added += len(images)
            bar.advance(len(batch))
    return summary


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


class Index:
    """An index opened for queries.

    Attributes:
        path: The file.
        checkpoint: Where the model was opened from.
        paths: Paths of the images.
        vectors: Unit vectors float32[N, P].

    Raises:
        UserError: The file does not exist, is not an index, or holds no image.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            make = f"mmchat clip search index FOLDER --ckpt CKPT --out {path}"
            raise UserError(f"{path} does not exist; make it with `{make}`")
        self.path = path
        with _opened(path) as index:
            self.checkpoint, folder, self._fingerprint = _metadata(index)
            rows = index.execute("SELECT path, vector FROM images ORDER BY path").fetchall()
        if not rows:
            raise UserError(f"{path} holds no image")
        self.paths = [folder / os.fsdecode(name) for name, _ in rows]
        self.vectors = np.frombuffer(b"".join(vector for _, vector in rows), np.float32).reshape(len(rows), -1)

    def nearest(self, query: np.ndarray, number: int) -> list[Hit]:
        """The `number` most similar images, best first.

        Args:
            query: Unit vector float32[P].
            number: Largest number of images.
        """
        require("sklearn")
        from sklearn.neighbors import NearestNeighbors

        neighbours = NearestNeighbors(algorithm="brute").fit(self.vectors)
        distances, found = neighbours.kneighbors(query[None], min(number, len(self.paths)))
        # |a - b|^2 = 2 - 2 a.b for unit vectors, so the nearest are the most similar.
        return [Hit(self.paths[i], 1 - d * d / 2) for i, d in zip(found[0], distances[0].tolist(), strict=True)]

    def check(self, embedder: Embedder) -> None:
        """Raise UserError if another model made the index: its vectors cannot be compared."""
        _check_model(self.path, self._fingerprint, embedder)


def fingerprint(embedder: Embedder) -> np.ndarray:
    """Identifies a model: its embeddings of a fixed image and a fixed text, float32[2 P]. Column `probe` of the
    index."""
    ramp = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
    return np.concatenate([embedder.images([Image.fromarray(ramp)])[0], embedder.texts(["image"])[0]])


def _check_model(path: Path, stored: np.ndarray, embedder: Embedder) -> None:
    found = fingerprint(embedder)
    if found.shape != stored.shape or np.abs(found - stored).max() > SAME_MODEL:
        raise UserError(f"{path} was made by another model; index the folder again, into another file")


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(path)) as index:
            yield index
            index.commit()
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} cannot be used as an index of images: {error}") from None


def _metadata(index: sqlite3.Connection) -> tuple[str, Path, np.ndarray]:
    checkpoint, folder, stored = index.execute("SELECT checkpoint, folder, probe FROM about").fetchone()
    return checkpoint, Path(os.fsdecode(folder)), np.frombuffer(stored, np.float32)


def write_sheet(path: Path, query: str | Path, hits: Sequence[Hit]) -> None:
    """Write the hits as a self-contained HTML page. Jinja escapes file names, which are untrusted text.

    Args:
        path: The page.
        query: The text, or the image file.
        hits: Best first.
    """
    query_image = _thumbnail(query) if isinstance(query, Path) else None
    cells = [{"path": shown(hit.path), "similarity": hit.similarity, **_thumbnail(hit.path)} for hit in hits]
    write_text(path, render("search_results.html", query=shown(query), query_image=query_image, cells=cells))


def _thumbnail(path: Path) -> dict[str, str | None]:
    try:
        return {"uri": data_uri(load_image(path), THUMBNAIL_SIDE), "problem": None}
    except UserError as error:  # changed or removed since it was indexed
        return {"uri": None, "problem": shown(str(error))}
