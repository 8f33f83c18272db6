"""The table of a task in the terminal."""

from rich.table import Table

from mmchat.evaluation.questions import BLINDS
from mmchat.evaluation.tasks.comparing import Comparison, Difference
from mmchat.evaluation.tasks.scorers import Scorer
from mmchat.evaluation.tasks.scoring import Figure, TaskScore

SHOWN_ANSWER = 24
"""Characters of an answer in a heading."""


def task_table(title: str, score: TaskScore) -> Table:
    """A row per figure with its interval, the blind score and the guess, and below a row per part."""
    table = Table(title=title, title_justify="left")
    table.add_column("score", overflow="fold")
    for column in ("model", "95 % interval", *columns(score), "questions"):
        table.add_column(column, justify="right")
    for name, figure in score.figures.items():
        table.add_row(name, *cells(score.scorer, figure, score))
    for field, parts in score.parts.items():
        table.add_section()
        table.add_row(f"{score.scorer.of_part} by {field}")
        for value, figure in parts.items():
            table.add_row(f"  {value}", *cells(score.scorer, figure, score))
    return table


def comparison_table(title: str, names: tuple[str, str], comparison: Comparison) -> Table:
    """A row per figure with both values, their difference and its interval, and below a row per part."""
    table = Table(title=title, title_justify="left")
    table.add_column("score", overflow="fold")
    for column in (*names, "difference", "95 % interval", "questions"):
        table.add_column(column, justify="right")
    for name, found in comparison.figures.items():
        table.add_row(name, *difference_cells(comparison.scorer, found))
    for field, parts in comparison.parts.items():
        table.add_section()
        table.add_row(f"{comparison.scorer.of_part} by {field}")
        for value, found in parts.items():
            table.add_row(f"  {value}", *difference_cells(comparison.scorer, found))
    return table


def difference_cells(scorer: Scorer, found: Difference) -> list[str]:
    """The cells of a row after its name."""
    low, high = (signed(scorer, end) for end in found.interval)
    values = [shown(scorer, found.first), shown(scorer, found.second), signed(scorer, found.difference)]
    return [*values, f"{low} to {high}", f"{found.questions:,}"]


def comparison_notes(names: tuple[str, str], comparison: Comparison) -> list[str]:
    """Whether the score differs, and on how many questions which one is better."""
    name, main = next(iter(comparison.figures.items()))
    verdict = "excludes zero" if main.is_clear else "holds zero: no difference is shown"
    first, second = comparison.better
    same = len(comparison.samples) - len(first) - len(second)
    return [
        f"the interval of {name} {verdict}",
        f"better answers: {names[0]} to {len(first):,} questions, {names[1]} to {len(second):,}; alike: {same:,}",
    ]


def signed(scorer: Scorer, value: float) -> str:
    """A difference with its sign."""
    return f"{value * (100 if scorer.percent else 1):+.1f}"


def cells(scorer: Scorer, figure: Figure, score: TaskScore) -> list[str]:
    """The cells of a row after its name."""
    low, high = (shown(scorer, end) for end in figure.interval)
    guesses = [shown(scorer, figure.blind)] if score.blind_by else []
    guesses += [shown(scorer, figure.guess)] if score.commonest_right is not None else []
    return [shown(scorer, figure.value), f"{low} to {high}", *guesses, f"{figure.questions:,}"]


def shown(scorer: Scorer, value: float | None) -> str:
    """A figure with one decimal, shares in percent."""
    return "-" if value is None else f"{value * (100 if scorer.percent else 1):.1f}"


def notes(score: TaskScore) -> list[str]:
    """What a table has no column for."""
    answer, share = score.commonest
    ended = [
        f"{name} {100 * value:.1f} %"
        for name, value in (("cut", score.cut), ("looping", score.looping))
        if value is not None
    ]
    lines = [
        f"{score.scorer.description}; {score.questions:,} questions about {score.images:,} images",
        f"commonest answer: {quoted(answer)}, {100 * share:.1f} %" + (f"; {', '.join(ended)}" if ended else ""),
    ]
    if score.unanswered:
        lines.append(f"{score.unanswered:,} without an answer, which count as an empty one")
    return lines


def quoted(text: str, longest: int = SHOWN_ANSWER) -> str:
    """A text between quotation marks, cut."""
    line = " ".join(text.split())
    return f"“{line if len(line) <= longest else f'{line[: longest - 1]}…'}”"


def columns(score: TaskScore) -> list[str]:
    """Headings of the blind score and of the guess, where there are any."""
    found = [f"blind ({blind_words(score)})"] if score.blind_by else []
    return found + ([f"always {quoted(score.commonest_right)}"] if score.commonest_right is not None else [])


def blind_words(score: TaskScore) -> str:
    """What the blind score looked at."""
    return next((words for name, words in BLINDS.items() if name == score.blind_by), str(score.blind_by))
