"""Searching images by words or by another image: every image's vector, kept in one SQLite file.

SQLite makes each batch whole or not there at all, so that an index may be stopped and gone on with at any moment. A
query reads all vectors and compares them all, by scikit-learn: exact, and quick up to some hundred thousand images.
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
"""Largest difference of a coordinate where one model computed a vector twice, on whatever device."""
THUMBNAIL_SIDE = 224
"""Longer side of an image on the contact sheet, in pixels."""
_TABLES = """
BEGIN;
CREATE TABLE about (checkpoint TEXT, folder BLOB, probe BLOB);
CREATE TABLE images (path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, vector BLOB);
"""
# Paths are bytes: the name of a file may be no text.


@dataclass
class IndexSummary:
    """added, kept, removed: images. unreadable: (path, reason); a later run tries them again."""

    added: int = 0
    kept: int = 0
    removed: int = 0
    unreadable: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Hit:
    """similarity: the cosine of the two vectors, -1 to 1."""

    path: Path
    similarity: float


def index_folder(embedder: Embedder, checkpoint: str, folder: Path, out: Path, batch_size: int = 32) -> IndexSummary:
    """Bring the index up to date with the folder: new and changed images are read, those that went are forgotten.

    Raises:
        UserError: no image is there, or `out` is no index, or one of another folder or model.
    """
    folder = folder.resolve()
    files = find_images([folder])
    out.parent.mkdir(parents=True, exist_ok=True)
    with _opened(out) as index:
        if not index.execute("SELECT name FROM sqlite_master").fetchall():
            index.executescript(_TABLES)
            about = (checkpoint, os.fsencode(folder), fingerprint(embedder).tobytes())
            index.execute("INSERT INTO about VALUES (?, ?, ?)", about)
            index.commit()
        _, indexed, made_by = _about(index)
        if indexed != folder:
            raise UserError(f"{out} is an index of {indexed}, not of {folder}; name another --out")
        _check_model(out, made_by, embedder)
        return _update(index, embedder, folder, files, batch_size)


def _update(
    index: sqlite3.Connection, embedder: Embedder, folder: Path, files: list[Path], batch_size: int
) -> IndexSummary:
    now = {os.fsencode(path.relative_to(folder)): path for path in files}
    states = {name: _state(path) for name, path in now.items()}
    known = {name: state for name, *state in index.execute("SELECT path, size, changed FROM images")}
    gone = [name for name, state in known.items() if states.get(name) != state]
    missing = [name for name in now if known.get(name) != states[name]]
    summary = IndexSummary(kept=len(known) - len(gone), removed=sum(name not in now for name in gone))
    index.executemany("DELETE FROM images WHERE path = ?", [(name,) for name in gone])
    index.commit()
    with progress_bar("indexing", len(missing)) as bar:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            images: dict[bytes, Image.Image] = {}
            for name in batch:
                try:
                    images[name] = load_image(now[name])
                except UserError as error:
                    summary.unreadable.append((now[name], str(error)))
            if images:
                vectors = embedder.images(list(images.values()))
                rows = [(name, *states[name], vector.tobytes()) for name, vector in zip(images, vectors, strict=True)]
                index.executemany("INSERT INTO images VALUES (?, ?, ?, ?)", rows)
                index.commit()
            summary.added += len(images)
            bar.advance(len(batch))
    return summary


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


class Index:
    """checkpoint: what it was made with. paths: of the images. vectors: float32[N, P].

    Raises:
        UserError: no index is there, or nothing is in it.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            make = f"mmchat clip search index FOLDER --ckpt CKPT --out {path}"
            raise UserError(f"{path} does not exist; make it with `{make}`")
        self.path = path
        with _opened(path) as index:
            self.checkpoint, folder, self.made_by = _about(index)
            rows = index.execute("SELECT path, vector FROM images ORDER BY path").fetchall()
        if not rows:
            raise UserError(f"{path} holds no image")
        self.paths = [folder / os.fsdecode(name) for name, _ in rows]
        self.vectors = np.frombuffer(b"".join(vector for _, vector in rows), np.float32).reshape(len(rows), -1)

    def nearest(self, query: np.ndarray, number: int) -> list[Hit]:
        """The images most like `query`, float32[P] of unit length; the best first."""
        require("sklearn")
        from sklearn.neighbors import NearestNeighbors

        neighbours = NearestNeighbors(algorithm="brute").fit(self.vectors)
        distances, found = neighbours.kneighbors(query[None], min(number, len(self.paths)))
        # Of unit vectors |a - b|^2 = 2 - 2 a.b, so that the nearest are the most similar.
        return [Hit(self.paths[i], 1 - d * d / 2) for i, d in zip(found[0], distances[0].tolist(), strict=True)]

    def check(self, embedder: Embedder) -> None:
        """Raises UserError where another model made the index: its vectors could not be compared."""
        _check_model(self.path, self.made_by, embedder)


def fingerprint(embedder: Embedder) -> np.ndarray:
    """What tells one model from another: its vectors of a fixed image and a fixed word, float32[2 P]."""
    ramp = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
    return np.concatenate([embedder.images([Image.fromarray(ramp)])[0], embedder.texts(["image"])[0]])


def _check_model(path: Path, made_by: np.ndarray, embedder: Embedder) -> None:
    now = fingerprint(embedder)
    if now.shape != made_by.shape or np.abs(now - made_by).max() > SAME_MODEL:
        raise UserError(f"{path} was made by another model; index the folder again, into another file")


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(path)) as index:
            yield index
            index.commit()
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} cannot be used as an index of images: {error}") from None


def _about(index: sqlite3.Connection) -> tuple[str, Path, np.ndarray]:
    checkpoint, folder, made_by = index.execute("SELECT checkpoint, folder, probe FROM about").fetchone()
    return checkpoint, Path(os.fsdecode(folder)), np.frombuffer(made_by, np.float32)


def write_sheet(path: Path, query: str | Path, hits: Sequence[Hit]) -> None:
    """The hits as one HTML page that needs nothing beside it; names are strangers' text, and Jinja escapes them."""
    query_image = _thumbnail(query) if isinstance(query, Path) else None
    cells = [{"path": shown(hit.path), "similarity": hit.similarity, **_thumbnail(hit.path)} for hit in hits]
    write_text(path, render("search_results.html", query=shown(query), query_image=query_image, cells=cells))


def _thumbnail(path: Path) -> dict[str, str | None]:
    try:
        return {"uri": data_uri(load_image(path), THUMBNAIL_SIDE), "problem": None}
    except UserError as error:  # it was there when it was indexed
        return {"uri": None, "problem": shown(str(error))}
