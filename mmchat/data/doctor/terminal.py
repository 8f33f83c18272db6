"""The result of a check as a table in the terminal. Text of records is never parsed as markup."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmchat.data.doctor.findings import KINDS
from mmchat.data.doctor.run import CheckResult
from mmchat.data.doctor.wording import cleanly, not_checked, unread_keys, verdict

STYLES = {"error": "bold red", "warning": "yellow", "left out": "dim"}
EXAMPLE_TEXT = 200
"""Most characters of an example."""


def findings_table(result: CheckResult) -> Table:
    """Severity, count, and what the findings of each kind mean, with the first of them as an example."""
    table = Table(title="findings", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column("severity")
    table.add_column("findings", justify="right")
    table.add_column("kind", overflow="fold")
    for name, kind in KINDS.items():
        if count := result.tally.findings[name]:
            text = Text.assemble((kind.title, "bold"), f": {kind.meaning}")
            for example in result.tally.examples[name][:1]:
                text.append(f"\n{cleanly(f'{example.where}: {example.finding.reason}', EXAMPLE_TEXT)}", "dim")
            table.add_row(Text(kind.severity, STYLES[kind.severity]), f"{count:,}", text)
    return table


def print_result(console: Console, result: CheckResult, files: list[str], following: list[str]) -> None:
    """Print findings, files and verdict.

    Args:
        console: Where.
        result: The check.
        files: What was written.
        following: Lines about what to do next.
    """

    def say(line: str, style: str = "") -> None:
        console.print(Text(line, style), soft_wrap=True)

    if result.tally.findings:
        console.print(findings_table(result))
    for line in not_checked(result)[: 1 if result.request.processor is None else 0]:
        say(f"not checked: {line}", "dim")
    if keys := unread_keys(result):
        say("not read: " + ", ".join(f"{key} ({number:,})" for key, number in keys), "dim")
    for file in files:
        say(file)
    say(verdict(result), "green" if result.sound else "red")
    for line in following:
        say(line)
