"""Tables for charts: random tables, tables from CSV files, their labels, and questions about them."""

import csv
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

from mmchat.errors import UserError

ABSENT = "None"
"""Stands for a title that a chart does not have."""
MOST_ROWS, MOST_SERIES = 12, 3

_SUBJECTS = (
    ("Rainfall", "mm"), ("Visitors", "thousand"), ("Harvest", "t"), ("Energy use", "GWh"), ("Rents", "EUR"),
    ("Exports", "million"), ("Members", "persons"), ("Accidents", "cases"), ("Loans", "books"), ("Births", "children"),
    ("Passengers", "million"), ("Salaries", "USD"), ("Waste", "kg"), ("Orders", "items"), ("Sunshine", "hours"),
)  # fmt: skip
_ROWS = {
    "Month": "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(),  # noqa: SIM905
    "Year": [str(year) for year in range(1995, 2025)],
    "City": ["Oslo", "Lima", "Cairo", "Quito", "Turin", "Kyoto", "Perth", "Porto", "Lagos", "Graz", "Bonn", "Delhi"],
    "Branch": ["North", "South", "East", "West", "Harbour", "Airport", "Old Town", "Station", "Park", "Bridge"],
    "Product": ["Lamps", "Chairs", "Tables", "Shelves", "Beds", "Carpets", "Clocks", "Mirrors", "Vases", "Desks"],
}
_SERIES = (
    ("Plan", "Actual", "Forecast"), ("Women", "Men", "Children"), ("Group A", "Group B", "Group C"),
    ("Urban", "Suburban", "Rural"), ("Day", "Evening", "Night"), ("First shift", "Second shift", "Third shift"),
)  # fmt: skip
_SOURCES = ("Annual report", "Survey of 2021", "City archive", "Own counts", "Statistics office", "Ministry of Trade")


@dataclass(frozen=True)
class Table:
    """A table. values: series name (one series is named "") -> row name -> value."""

    title: str
    source: str
    x_title: str
    y_title: str
    values: dict[str, dict[str, float]]

    @property
    def rows(self) -> list[str]:
        return list(next(iter(self.values.values())))

    def label(self) -> str:
        """Vary's dictionary (arXiv:2312.06109, section 3.2.2) with OneChart's keys, valid as JSON and as Python."""
        values = self.values.get("", self.values)
        names = {"title": self.title, "source": self.source, "x_title": self.x_title, "y_title": self.y_title}
        return json.dumps({**names, "values": values}, ensure_ascii=False)


def random_table(rng: random.Random) -> Table:
    """A random table with plausible names and values: one to three series of three to nine rows."""
    subject, unit = rng.choice(_SUBJECTS)
    x_title = rng.choice(sorted(_ROWS))
    names = _ROWS[x_title]
    count = rng.randint(3, 9)
    start = rng.randrange(len(names) - count + 1)
    rows = names[start : start + count] if x_title in ("Month", "Year") else rng.sample(names, count)
    number = rng.choice((1, 1, 2, 3))
    series = rng.choice(_SERIES)[:number] if number > 1 else ("",)
    middle, spread = 10 ** rng.uniform(0.5, 3.5), rng.uniform(0.1, 0.6)
    values = {name: {row: _round_value(middle * rng.lognormvariate(0, spread)) for row in rows} for name in series}
    return Table(
        title=f"{subject} by {x_title.lower()}",
        source=rng.choice(_SOURCES) if rng.random() < 0.5 else ABSENT,
        x_title=x_title,
        y_title=f"{subject} ({unit})" if rng.random() < 0.8 else ABSENT,
        values=values,
    )


def read_tables(folder: Path) -> list[Table]:
    """One table from each .csv: a header row, row names in the first column, numbers in the others.

    Raises:
        UserError: a cell is not a number, a row has a wrong length or a duplicate name, or there is no file.
    """
    tables = [_read(path) for path in sorted(folder.rglob("*.csv"))]
    if not tables:
        raise UserError(f"--tables {folder} holds no .csv")
    return tables


def excerpt(rng: random.Random, table: Table) -> Table:
    """A random part of a table that fits in a chart: consecutive rows of a few series."""
    count = min(len(table.rows), rng.randint(3, MOST_ROWS))
    start = rng.randrange(len(table.rows) - count + 1)
    rows = table.rows[start : start + count]
    names = rng.sample(list(table.values), min(len(table.values), rng.randint(1, MOST_SERIES)))
    names = [name for name in table.values if name in names]
    if len(names) > 1:
        values = {name: {row: table.values[name][row] for row in rows} for name in names}
        return Table(table.title, table.source, table.x_title, ABSENT, values)
    return Table(table.title, table.source, table.x_title, names[0], {"": {r: table.values[names[0]][r] for r in rows}})


def questions(rng: random.Random, table: Table) -> list[tuple[str, str]]:
    """(question, answer) of each kind that has a unique answer, in random order."""
    name = rng.choice(list(table.values))
    of = f" of {name}" if name else ""
    values = table.values[name]
    row, other = rng.sample(list(values), 2)
    pairs = [
        (f"What is the value{of} for {row}?", _format(values[row])),
        (f"How many values{of} are shown?", str(len(values))),
        (f"What is the difference{of} between {row} and {other}?", _format(round(abs(values[row] - values[other]), 6))),
    ]
    for word, best in (("largest", max(values.values())), ("smallest", min(values.values()))):
        places = [row for row, value in values.items() if value == best]
        if len(places) == 1:
            what = "part" if table.x_title == ABSENT else table.x_title
            pairs.append((f"Which {what} has the {word} value{of}?", places[0]))
    rng.shuffle(pairs)
    return pairs


def _read(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.reader(file))
    if len(lines) < 4 or len(lines[0]) < 2:
        raise UserError(f"{path}: expected a header, at least three rows, and a column of numbers after the names")
    head, *rows = lines
    values: dict[str, dict[str, float]] = {name: {} for name in head[1:]}
    for number, row in enumerate(rows, 2):
        if len(row) != len(head) or row[0] in values[head[1]]:
            raise UserError(f"{path}, line {number}: expected {len(head)} cells and a unique row name")
        for name, cell in zip(head[1:], row[1:], strict=True):
            try:
                value = float(cell)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise UserError(f"{path}, line {number}: {name} is {cell!r}, expected a number")
            values[name][row[0]] = int(value) if value.is_integer() else value
    return Table(path.stem.replace("_", " "), ABSENT, head[0], ABSENT, values)


def _round_value(value: float) -> float:
    """Round to three significant digits, which can be read from an axis."""
    value = float(f"{value:.3g}")
    return int(value) if value.is_integer() else value


def _format(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e6 else str(value)
