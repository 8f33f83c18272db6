"""Score of the table behind a chart: StructChart's SCRM (arXiv:2309.11268). No torch here.

A table is a set of triplets (entity, entity, value). A predicted triplet matches one of the reference if the names are
at most `letters` edits apart and the values differ by at most the share `share` of the right one. The similarity of two
tables is matches / size of the union. A table is right at a threshold if its similarity reaches it.

Two differences to StructChart's code: a triplet matches at most one other (there two predictions of one cell count
twice), and tolerance is relative to the absolute value (there any prediction of a negative value is right).
"""

import ast
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmchat.errors import UserError
from mmchat.evaluation.answer_scores import NUMBER
from mmchat.extras import require

Triplet = tuple[str, str, str | float]


@dataclass(frozen=True)
class Tolerance:
    """Tolerated edits of the names, and tolerated deviation of the value as a share of it."""

    letters: int
    share: float


STRICT, SLIGHT, HIGH = Tolerance(0, 0.0), Tolerance(2, 0.05), Tolerance(5, 0.1)
"""The three tolerances of StructChart."""
THRESHOLDS = range(10, 20)
"""Of similarity, in units of 1/20: 0.50, 0.55, ..., 0.95."""
_RULE = re.compile(r"[\s|:-]*")
"""An empty line, or the rule below the header of a Markdown table."""


def scrm(prediction: str, reference: str, tolerance: Tolerance) -> float:
    """Share of the thresholds that a table reaches. Its mean over tables is StructChart's mPrecision.

    Raises:
        UserError: the reference is not a table.
    """
    wanted = triplets(reference)
    if not wanted:
        raise UserError(f"a reference of a table score is neither a dictionary nor CSV: {reference[:80]!r}")
    found = triplets(prediction)
    matches = _matches(found, wanted, tolerance)
    union = len(found) + len(wanted) - matches
    return sum(20 * matches >= threshold * union for threshold in THRESHOLDS) / len(THRESHOLDS)


def triplets(text: str) -> set[Triplet]:
    """The triplets of a table; an empty set if the text is not a table.

    A dictionary in JSON or Python syntax gives (innermost key, joined outer keys, value); the keys of a list are its
    indices. Lines of cells separated by tabs, bars (Markdown) or commas give (row name, column name, cell). The two
    names are sorted, so a table equals its transpose. Case does not count.
    """
    tree = _dictionary(text)
    cells = _leaves(tree, ()) if tree is not None else _cells(text)
    return {(*sorted((_name(first), _name(second))), _value(value)) for first, second, value in cells}


def _dictionary(text: str) -> dict | None:
    for parse in (json.loads, ast.literal_eval):
        try:
            tree = parse(text.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue  # models write anything
        if isinstance(tree, dict):
            return tree
    return None


def _leaves(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, below in items:
            yield from _leaves(below, (*path, str(key)))
    else:
        yield " ".join(path[:-1]), path[-1], tree


def _cells(text: str) -> Iterator[tuple[str, str, str]]:
    lines = [line.strip(" \r").removeprefix("|").removesuffix("|") for line in text.split("\n")]
    lines = [line for line in lines if not _RULE.fullmatch(line)]
    separator = next((mark for mark in "\t|" if any(mark in line for line in lines)), ",")
    try:
        header, *rows = list(csv.reader(lines, delimiter=separator, skipinitialspace=True)) or [[]]
    except csv.Error:
        return  # models write anything
    for row in rows:
        for column, cell in zip(header[1:], row[1:], strict=False):
            yield row[0], column, cell


def _name(text: str) -> str:
    return " ".join(text.lower().split())


def _value(value: Any) -> str | float:
    """A number, ignoring percent signs, dollar signs and thousands separators; else text."""
    text = _name(str(value))
    digits = re.sub(r"[%$,]", "", text)
    return float(digits) if NUMBER.fullmatch(digits) else text


def _matches(found: set[Triplet], wanted: set[Triplet], tolerance: Tolerance) -> int:
    """Size of the largest matching: pairs of similar triplets, each triplet in at most one."""
    require("scipy")
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    pairs = np.array([[_similar(one, other, tolerance) for other in wanted] for one in found]).reshape(
        len(found), len(wanted)
    )
    return int((maximum_bipartite_matching(csr_matrix(pairs)) >= 0).sum())


def _similar(found: Triplet, wanted: Triplet, tolerance: Tolerance) -> bool:
    *names, value = found
    *right_names, right = wanted
    if isinstance(value, float) and isinstance(right, float):
        close = value == right or abs(value - right) <= tolerance.share * abs(right)
        return close and _edits("".join(names), "".join(right_names), tolerance) <= tolerance.letters
    return _edits("".join(map(str, found)), "".join(map(str, wanted)), tolerance) <= tolerance.letters


def _edits(one: str, other: str, tolerance: Tolerance) -> int:
    require("rapidfuzz")
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(one, other, score_cutoff=tolerance.letters)
