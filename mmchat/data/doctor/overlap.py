"""Comparisons between records: duplicates, similar images, and overlap with the evaluation sets."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmchat.data.doctor.duplicates import find_equal, find_near, first_equal
from mmchat.data.doctor.partial_results import RecordStats


@dataclass(frozen=True)
class Relation:
    """A record or one of its images equals or resembles another. Image -1 is the record itself.

    For leaks, `other` is a record of the evaluation sets, counted through all of them.
    """

    kind: str
    record: int
    image: int
    other: int
    other_image: int


class Relations:
    """All relations of one source, as arrays. `of(record)` lists those of one record."""

    def __init__(self, stats: RecordStats, held_out: RecordStats | None) -> None:
        self._stats, self._held_out = stats, held_out
        nothing = np.full(len(stats), -1)
        no_image = np.full(len(stats.owner), -1)
        self.leaked_text, self.leaked, self.near_leak = nothing.copy(), no_image.copy(), no_image.copy()
        if held_out is not None:
            self._find_leaks(held_out)
        sound = stats.sound & (self.leaked_text < 0)
        sound[stats.owner[self.leaked >= 0]] = False
        self.duplicate = _duplicates(stats.digest, sound)
        self.sound = sound & (self.duplicate < 0)
        self._comparable = self._distinct_images()
        self.near = self._find_near()
        if held_out is not None:
            self._find_near_leaks(held_out)

    def records(self, start: int, stop: int) -> set[int]:
        """The records in [start, stop) that have a relation."""
        found = np.flatnonzero((self.leaked_text[start:stop] >= 0) | (self.duplicate[start:stop] >= 0)) + start
        first, last = np.searchsorted(self._stats.owner, (start, stop))
        imaged = (self.leaked[first:last] >= 0) | (self.near_leak[first:last] >= 0) | (self.near[first:last] >= 0)
        return {*found.tolist(), *self._stats.owner[first:last][imaged].tolist()}

    def of(self, record: int) -> Iterator[Relation]:
        """Relations of a record in a fixed order: leaks, a duplicate, near leaks, near duplicates."""
        first, last = np.searchsorted(self._stats.owner, (record, record + 1)).tolist()
        images = range(first, last)
        if self.leaked_text[record] >= 0:
            yield Relation("leak", record, -1, int(self.leaked_text[record]), -1)
        yield from self._of_images("leak", self.leaked, self._held_out, images)
        if self.duplicate[record] >= 0:
            yield Relation("exact_duplicate", record, -1, int(self.duplicate[record]), -1)
        yield from self._of_images("near_leak", self.near_leak, self._held_out, images)
        yield from self._of_images("near_duplicate", self.near, self._stats, images)

    def _of_images(self, kind: str, found: np.ndarray, others: RecordStats | None, images: range) -> Iterator[Relation]:
        if others is None:
            return
        for image in images:
            if (other := int(found[image])) >= 0:
                image_of = (int(self._stats.owner[image]), int(self._stats.place[image]))
                yield Relation(kind, *image_of, int(others.owner[other]), int(others.place[other]))

    def _find_leaks(self, held_out: RecordStats) -> None:
        stats = self._stats
        # A record with images leaks by any image; equal text alone ("What is this?") means nothing there.
        texts = np.flatnonzero(stats.sound & (stats.images == 0))
        known = np.flatnonzero((held_out.images == 0) & held_out.digest.any(axis=1))
        found = find_equal(stats.digest[texts], held_out.digest[known])
        self.leaked_text[texts[found >= 0]] = known[found[found >= 0]]
        sound = np.flatnonzero(stats.sound[stats.owner])
        self.leaked[sound] = find_equal(stats.image_digest[sound], held_out.image_digest)

    def _distinct_images(self) -> np.ndarray:
        """Distinct images of records without errors that have enough content to be compared."""
        stats = self._stats
        numbers = np.flatnonzero(self.sound[stats.owner])
        first = numbers[first_equal(stats.image_digest[numbers]) == np.arange(len(numbers))]
        return first[stats.hash[first].any(axis=1)]

    def _find_near(self) -> np.ndarray:
        hashes, owner = self._stats.hash[self._comparable], self._stats.owner
        near = find_near(hashes, hashes, np.arange(len(hashes)))
        image, other = self._comparable[near >= 0], self._comparable[near[near >= 0]]
        elsewhere = owner[image] != owner[other]  # similar images within one record are intended
        found = np.full(len(owner), -1)
        found[image[elsewhere]] = other[elsewhere]
        return found

    def _find_near_leaks(self, held_out: RecordStats) -> None:
        known = np.flatnonzero(held_out.hash.any(axis=1))
        everything = np.full(len(self._comparable), len(known))
        found = find_near(self._stats.hash[self._comparable], held_out.hash[known], everything)
        self.near_leak[self._comparable[found >= 0]] = known[found[found >= 0]]


def _duplicates(digests: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """int64[n]: the earlier record that each repeats, -1 if none. Records with errors are ignored."""
    numbers = np.flatnonzero(sound)
    first = numbers[first_equal(digests[numbers])]
    found = np.full(len(digests), -1)
    found[numbers] = np.where(first < numbers, first, -1)
    return found
