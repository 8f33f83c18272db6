"""What only several records tell together: duplicates, look-alikes, and what the evaluation set holds too."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmchat.data.doctor.duplicates import find_equal, find_near, first_equal
from mmchat.data.doctor.partial_results import RecordStats


@dataclass(frozen=True)
class Relation:
    """A record, or one of its images, is like another one; image -1 is the record itself.

    Of leaks the other one belongs to the evaluation set, whose records are counted through all its sources.
    """

    kind: str
    record: int
    image: int
    other: int
    other_image: int


class Relations:
    """All relations of one source, as arrays; `of(record)` says them in words for one record."""

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
        self._looks = self._distinct_images()
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
        """In a fixed order: leaks, a duplicate, near leaks, near duplicates."""
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
        for image in images:
            if (other := int(found[image])) >= 0:
                whose = (int(self._stats.owner[image]), int(self._stats.place[image]))
                yield Relation(kind, *whose, int(others.owner[other]), int(others.place[other]))

    def _find_leaks(self, held_out: RecordStats) -> None:
        stats = self._stats
        # With images a record leaks by any of them; the words alone ("What is this?") say nothing.
        texts = np.flatnonzero(stats.sound & (stats.images == 0))
        known = np.flatnonzero((held_out.images == 0) & held_out.digest.any(axis=1))
        found = find_equal(stats.digest[texts], held_out.digest[known])
        self.leaked_text[texts[found >= 0]] = known[found[found >= 0]]
        sound = np.flatnonzero(stats.sound[stats.owner])
        self.leaked[sound] = find_equal(stats.image_digest[sound], held_out.image_digest)

    def _distinct_images(self) -> np.ndarray:
        """Images of sound records, each once, that have enough in them to be told apart."""
        stats = self._stats
        numbers = np.flatnonzero(self.sound[stats.owner])
        first = numbers[first_equal(stats.image_digest[numbers]) == np.arange(len(numbers))]
        return first[stats.hash[first].any(axis=1)]

    def _find_near(self) -> np.ndarray:
        hashes, owner = self._stats.hash[self._looks], self._stats.owner
        near = find_near(hashes, hashes, np.arange(len(hashes)))
        image, other = self._looks[near >= 0], self._looks[near[near >= 0]]
        elsewhere = owner[image] != owner[other]  # two states of one scene in a record are there on purpose
        found = np.full(len(owner), -1)
        found[image[elsewhere]] = other[elsewhere]
        return found

    def _find_near_leaks(self, held_out: RecordStats) -> None:
        known = np.flatnonzero(held_out.hash.any(axis=1))
        everything = np.full(len(self._looks), len(known))
        found = find_near(self._stats.hash[self._looks], held_out.hash[known], everything)
        self.near_leak[self._looks[found >= 0]] = known[found[found >= 0]]


def _duplicates(digests: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """int64[n]: the sound record that a sound one repeats, -1 for the others."""
    numbers = np.flatnonzero(sound)
    first = numbers[first_equal(digests[numbers])]
    found = np.full(len(digests), -1)
    found[numbers] = np.where(first < numbers, first, -1)
    return found
