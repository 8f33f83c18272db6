"""Collect partial results into quarantine.jsonl, warnings.jsonl and counts."""

from collections import Counter
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from mmchat.data.doctor.findings import KINDS, Finding, excludes, is_error
from mmchat.data.doctor.inputs import CheckedSource
from mmchat.data.doctor.overlap import Relation, Relations
from mmchat.data.doctor.partial_results import PartialResults
from mmchat.files import as_json_line

MOST_KEYS = 100
"""Keys without meaning that are counted by name: a record may hold any number of them."""


class Example(NamedTuple):
    """A finding for the report. `images`: (source, record number, image index) of the images concerned."""

    finding: Finding
    where: str
    id: str
    images: list[tuple[CheckedSource, int, int]]


@dataclass
class Tally:
    """Counts of findings.

    Attributes:
        findings: By kind.
        erroneous: Records with at least one error.
        warned: Records with warnings only.
        left_out: Records that hold nothing and say so.
        examples: Examples by kind.
    """

    findings: Counter[str] = field(default_factory=Counter)
    erroneous: int = 0
    warned: int = 0
    left_out: int = 0
    examples: dict[str, list[Example]] = field(default_factory=dict)


class Gatherer:
    """Writes one line per finding, in the order of the data: errors to one file, warnings to another."""

    def __init__(self, quarantine: BinaryIO, warnings: BinaryIO, held_out: list[CheckedSource], examples: int) -> None:
        self._files = {True: quarantine, False: warnings}
        self._held_out, self._examples = held_out, examples
        self.tally = Tally()

    def add(
        self, source: CheckedSource, number: int, starts: range, partial: PartialResults, relations: Relations
    ) -> None:
        """Write all findings of one source, chunk by chunk."""
        for start in starts:
            found: dict[int, list[Finding]] = {}
            for record, finding in partial.findings(number, start):
                found.setdefault(record, []).append(finding)
            stop = min(start + starts.step, len(source))
            for record in sorted(found.keys() | relations.records(start, stop)):
                self._add_record(source, record, found.get(record, []), list(relations.of(record)))

    def _add_record(self, source: CheckedSource, record: int, single: list[Finding], related: list[Relation]) -> None:
        where, identity, raw = source.stored(record)
        found = [(finding, [(source, record, finding.image)]) for finding in single]
        found += [self._describe_relation(source, relation) for relation in related]
        bad = any(is_error(finding.kind) for finding, _ in found)
        left_out = not bad and any(excludes(finding.kind) for finding, _ in found)
        self.tally.erroneous += bad
        self.tally.left_out += left_out
        self.tally.warned += not (bad or left_out)
        for finding, images in found:
            self.tally.findings[finding.kind] += 1
            line = {"where": where, "id": identity, "kind": finding.kind, "reason": finding.reason, "record": raw}
            self._files[is_error(finding.kind)].write(as_json_line(line))
            examples = self.tally.examples.setdefault(finding.kind, [])
            if len(examples) < self._examples:
                examples.append(Example(finding, where, identity, images))

    def _describe_relation(
        self, source: CheckedSource, relation: Relation
    ) -> tuple[Finding, list[tuple[CheckedSource, int, int]]]:
        other, place = source, relation.other
        if relation.kind in ("leak", "near_leak"):
            number, place = locate(self._held_out, relation.other)
            other = self._held_out[number]
        where, *_ = other.stored(place)
        what = "has" if relation.image < 0 else f"image {relation.image + 1} is"
        phrases = {
            "leak": "the same words as" if relation.image < 0 else "the same as in",
            "exact_duplicate": "the same images and words as",
            "near_leak": "nearly the same as in",
            "near_duplicate": "nearly the same as in",
        }
        images = [(source, relation.record, relation.image), (other, place, relation.other_image)]
        return Finding(relation.kind, f"{what} {phrases[relation.kind]} {where}", relation.image), images


def locate(sources: list[CheckedSource], record: int) -> tuple[int, int]:
    """Source and record number within it, for a record counted through several sources."""
    for number, source in enumerate(sources):
        if record < len(source):
            return number, record
        record -= len(source)
    raise IndexError(record)


def flat_counts(
    tally: Tally, sources: list[CheckedSource], kept: list[int], unread_keys: Counter[str]
) -> dict[str, int]:
    """The contents of `findings.json`: flat names and counts, for programs."""
    counts = {
        "records": sum(map(len, sources)),
        "records/sound": sum(kept),
        "records/with_errors": tally.erroneous,
        "records/with_warnings_only": tally.warned,
        "records/left_out": tally.left_out,
        "errors": sum(n for kind, n in tally.findings.items() if is_error(kind)),
        "warnings": sum(n for kind, n in tally.findings.items() if not excludes(kind)),
    }
    counts |= {f"{kind.severity.replace(' ', '_')}/{name}": tally.findings[name] for name, kind in KINDS.items()}
    for source, sound in zip(sources, kept, strict=True):
        counts |= {f"source/{source.name}/records": len(source), f"source/{source.name}/sound": sound}
    counts |= {f"unread_key/{key}": number for key, number in unread_keys.most_common(MOST_KEYS)}
    return counts
