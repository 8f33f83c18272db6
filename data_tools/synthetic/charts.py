"""Draws tables as charts with matplotlib: bars, lines, pies and scatter plots."""

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

from mmchat.errors import UserError
from synthetic.fonts import Face, families
from synthetic.generate import Sample, retry_defects
from synthetic.label_check import DefectError
from synthetic.pages import PLAIN_STYLES
from synthetic.records import CHART_PROMPT, image_path, make_record
from synthetic.tables import ABSENT, Table, excerpt, questions, random_table

_DPI = 100
PIE = "pie"
_PALETTES = ("tab10", "Dark2", "Set1")
_ANSWER = "\nAnswer the question using a single word or phrase."
"""LLaVA-1.5's prompt for short answers (haotian-liu/LLaVA, docs/Evaluation.md)."""


@dataclass(frozen=True)
class ChartMaker:
    """Makes chart `n`: a record that asks for its table, and records with questions about it.

    Attributes:
        tables: tables to draw; random ones if empty.
        size: width and height in pixels.
        question_count: maximum number of questions about each chart.
    """

    seed: int
    tables: Sequence[Table]
    faces: Sequence[Face]
    size: tuple[int, int]
    question_count: int

    def __call__(self, number: int) -> Sample:
        try:
            return retry_defects(partial(self.sample, number))
        except DefectError as defect:
            if not self.tables:
                raise
            raise UserError(f"{defect}; shorten the texts of your tables, or increase --width and --height") from None

    def sample(self, number: int, attempt: int = 0) -> Sample:
        """Raises DefectError if the chart does not show its label."""
        rng = random.Random(f"{self.seed}/chart/{number}/{attempt}")
        table = excerpt(rng, rng.choice(self.tables)) if self.tables else random_table(rng)
        kind = rng.choice([name for name, (can_show, _) in KINDS.items() if can_show(table)])
        if kind == PIE:
            table = replace(table, x_title=ABSENT, y_title=ABSENT)
        data = draw_chart(rng, kind, table, self.face(rng, table), self.size, f"chart {number} of seed {self.seed}")
        name, record_id = image_path("charts", number, "png"), f"charts/{number:07}"
        lines = [
            make_record(f"{record_id}/{place}", name, question + _ANSWER, answer, kind=kind)
            for place, (question, answer) in enumerate(questions(rng, table)[: self.question_count])
        ]
        return Sample(
            {"tables": [make_record(record_id, name, CHART_PROMPT, table.label(), kind=kind)], "questions": lines},
            {name: data},
        )

    def face(self, rng: random.Random, table: Table) -> Face:
        candidates = [face for face in self.faces if face.covers(table.label()) and face.style in PLAIN_STYLES]
        if not candidates:
            raise UserError(f"no font has all characters of the table {table.title!r}; see --fonts")
        family = rng.choice(families(candidates))
        return next(face for face in candidates if face.family == family)


def draw_chart(rng: random.Random, kind: str, table: Table, face: Face, size: tuple[int, int], where: str) -> bytes:
    """The chart as a PNG.

    Raises:
        DefectError: a text of the table is missing or cut off.
    """
    with matplotlib.rc_context({"axes.unicode_minus": False, "font.size": rng.uniform(9, 13)}):
        figure = Figure((size[0] / _DPI, size[1] / _DPI), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        colors = list(matplotlib.colormaps[rng.choice(_PALETTES)].colors)
        rng.shuffle(colors)
        axes.set_prop_cycle(color=colors)
        KINDS[kind][1](rng, axes, table)
        axes.set_title(table.title)
        if table.source != ABSENT:
            figure.supxlabel(f"Source: {table.source}", fontsize="small", x=0.98, ha="right")
        _set_font(figure, face)
        _rotate_labels(axes)
        _check(figure, table, where)
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


def _bars(rng: random.Random, axes: Axes, table: Table) -> None:
    each = 0.8 / len(table.values)
    flat, labelled = rng.random() < 0.3, rng.random() < 0.6
    for place, (name, values) in enumerate(table.values.items()):
        at = [number + (place - (len(table.values) - 1) / 2) * each for number in range(len(values))]
        heights = list(values.values())
        bars = axes.barh(at, heights, each, label=name) if flat else axes.bar(at, heights, each, label=name)
        if labelled and len(table.values) == 1:
            axes.bar_label(bars, labels=[f"{value:g}" for value in heights], padding=2)
            axes.margins(**{"x" if flat else "y": 0.12})
    places, titles = range(len(table.rows)), (table.x_title, table.y_title)
    if flat:
        axes.set_yticks(places, table.rows)
        axes.invert_yaxis()
    else:
        axes.set_xticks(places, table.rows)
    _name_axes(axes, *(reversed(titles) if flat else titles))
    _frame(rng, axes, table, "x" if flat else "y")


def _lines(rng: random.Random, axes: Axes, table: Table) -> None:
    marker = rng.choice(("o", "s", "^", ""))
    for name, values in table.values.items():
        axes.plot(range(len(values)), list(values.values()), label=name, marker=marker)
    axes.set_xticks(range(len(table.rows)), table.rows)
    _name_axes(axes, table.x_title, table.y_title)
    _frame(rng, axes, table, "both")


def _points(rng: random.Random, axes: Axes, table: Table) -> None:
    for name, values in table.values.items():
        axes.scatter(range(len(values)), list(values.values()), label=name, marker=rng.choice("osD^"), s=45)
    axes.set_xticks(range(len(table.rows)), table.rows)
    _name_axes(axes, table.x_title, table.y_title)
    _frame(rng, axes, table, "both")


def _pie(rng: random.Random, axes: Axes, table: Table) -> None:
    (values,) = table.values.values()
    shown = [f"{row}: {value:g}" for row, value in values.items()]
    axes.pie(list(values.values()), labels=shown, startangle=rng.randrange(360), wedgeprops={"edgecolor": "white"})


def _suits_pie(table: Table) -> bool:
    """Whether it is one series, and all slices are wide enough for their labels."""
    if len(table.values) > 1 or len(table.rows) > 6:
        return False
    (values,) = table.values.values()
    return min(values.values()) > 0.04 * sum(values.values())


KINDS: dict[str, tuple[Callable[[Table], bool], Callable[[random.Random, Axes, Table], None]]] = {
    "bar": (lambda table: True, _bars),
    "line": (lambda table: True, _lines),
    PIE: (_suits_pie, _pie),
    "scatter": (lambda table: True, _points),
}
"""Chart kind -> (whether it can show a table, function that draws it)."""


def _name_axes(axes: Axes, x_title: str, y_title: str) -> None:
    axes.set_xlabel("" if x_title == ABSENT else x_title)
    axes.set_ylabel("" if y_title == ABSENT else y_title)


def _frame(rng: random.Random, axes: Axes, table: Table, grid: str) -> None:
    if rng.random() < 0.6:
        axes.grid(axis=grid, alpha=0.4)
        axes.set_axisbelow(True)
    if rng.random() < 0.5:
        axes.spines[["top", "right"]].set_visible(False)
    if len(table.values) > 1:
        axes.figure.legend(loc="outside right upper")


def _texts(figure: Figure) -> list[Text]:
    """The drawn texts. matplotlib also keeps tick labels outside the axis range, which it does not draw."""
    undrawn = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        undrawn |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in undrawn]


def _set_font(figure: Figure, face: Face) -> None:
    figure.draw_without_rendering()  # creates the tick labels
    for text in figure.findobj(Text):
        font: FontProperties = text.get_fontproperties().copy()
        font.set_file(face.path)
        text.set_fontproperties(font)


def _rotate_labels(axes: Axes) -> None:
    """Rotate the tick labels of the x axis if they would touch."""
    axes.figure.draw_without_rendering()
    labels = [label for label in axes.get_xticklabels() if label.get_text()]
    boxes = [label.get_window_extent().padded(2) for label in labels]
    if any(box.overlaps(after) for box, after in pairwise(boxes)):
        for label in labels:
            label.set(rotation=45, ha="right", rotation_mode="anchor")
        axes.figure.draw_without_rendering()


def _check(figure: Figure, table: Table, where: str) -> None:
    figure_box = figure.bbox.padded(1)
    texts = _texts(figure)
    for text in texts:
        box = text.get_window_extent()
        if not (figure_box.contains(box.x0, box.y0) and figure_box.contains(box.x1, box.y1)):
            raise DefectError(f"{where}: {text.get_text()!r} leaves the image")
    written = {part for text in texts for part in (text.get_text(), *text.get_text().split(": "))} | {""}
    for name in (table.title, table.source, table.x_title, table.y_title, *table.rows, *table.values):
        if name not in (ABSENT, *written):
            raise DefectError(f"{where}: {name!r} is in the label, but not drawn")
