"""The result of a check as a table in the terminal. Text of records is never parsed as markup."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmchat.data.doctor.findings import KINDS
from mmchat.data.doctor.run import CheckResult
from mmchat.data.doctor.wording import not_checked, unread_keys, verdict

STYLES = {"error": "bold red", "warning": "yellow"}


def findings_table(result: CheckResult) -> Table:
    table = Table(title="findings", title_justify="left")
    table.add_column("severity")
    table.add_column("kind")
    table.add_column("findings", justify="right")
    table.add_column("what it means")
    for name, kind in KINDS.items():
        if count := result.tally.findings[name]:
            table.add_row(Text(kind.severity, STYLES[kind.severity]), kind.title, f"{count:,}", kind.meaning)
    return table


def print_result(console: Console, result: CheckResult, files: list[str], command: str | None) -> None:
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
    if command:
        say(f"next: {command}")
