"""The table behind a chart: a score after StructChart's SCRM (arXiv:2309.11268). No torch here.

A table is a set of triplets (entity, entity, value). One that was read matches one of the reference if the names are at
most `letters` edits apart and the values at most `share` of the right one. The similarity of two tables is matches /
size of the union; a table counts as right at a threshold if its similarity reaches it.

Unlike StructChart's program, a triplet matches at most one other (there two readings of one cell count twice), and a
tolerance is of the value without its sign (there any reading of a negative value is right).
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
    """How many edits of the names, and which share of the value, are forgiven."""

    letters: int
    share: float


STRICT, SLIGHT, HIGH = Tolerance(0, 0.0), Tolerance(2, 0.05), Tolerance(5, 0.1)
"""StructChart's three."""
THRESHOLDS = range(10, 20)
"""Of similarity, in twentieths: 0.50, 0.55, ..., 0.95."""
_RULE = re.compile(r"[\s|:-]*")
"""An empty line, and what Markdown draws below a header."""


def scrm(prediction: str, reference: str, tolerance: Tolerance) -> float:
    """Share of the thresholds that one table reaches; the mean over tables is StructChart's mPrecision.

    Raises:
        UserError: the reference is no table.
    """
    wanted = triplets(reference)
    if not wanted:
        raise UserError(f"a reference of a table score is neither a dictionary nor CSV: {reference[:80]!r}")
    found = triplets(prediction)
    matches = _matches(found, wanted, tolerance)
    union = len(found) + len(wanted) - matches
    return sum(20 * matches >= threshold * union for threshold in THRESHOLDS) / len(THRESHOLDS)


def triplets(text: str) -> set[Triplet]:
    """The cells of a table; none where the text is no table.

    A dictionary, as JSON or as Python writes it: the innermost key, the keys around it and the value; lists count by
    position. Else lines of cells, between tabs, bars (Markdown) or commas: name of the row, name of the column and the
    cell. The two names are sorted, so that a table and its transpose are alike; case does not count.
    """
    tree = _dictionary(text)
    cells = _leaves(tree, ()) if tree is not None else _cells(text)
    return {(*sorted((_name(first), _name(second))), _value(value)) for first, second, value in cells}


def _dictionary(text: str) -> dict | None:
    for parse in (json.loads, ast.literal_eval):
        try:
            tree = parse(text.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue  # whatever a model may have written
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
        return  # whatever a model may have written
    for row in rows:
        for column, cell in zip(header[1:], row[1:], strict=False):
            yield row[0], column, cell


def _name(text: str) -> str:
    return " ".join(text.lower().split())


def _value(value: Any) -> str | float:
    """A number, without percent, dollar and thousands marks, or text."""
    text = _name(str(value))
    digits = re.sub(r"[%$,]", "", text)
    return float(digits) if NUMBER.fullmatch(digits) else text


def _matches(found: set[Triplet], wanted: set[Triplet], tolerance: Tolerance) -> int:
    """How many pairs there are at most, each triplet in one."""
    require("scipy")
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    pairs = np.array([[_alike(one, other, tolerance) for other in wanted] for one in found]).reshape(
        len(found), len(wanted)
    )
    return int((maximum_bipartite_matching(csr_matrix(pairs)) >= 0).sum())


def _alike(found: Triplet, wanted: Triplet, tolerance: Tolerance) -> bool:
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
