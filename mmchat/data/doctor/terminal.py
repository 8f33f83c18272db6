"""What a pass found, as a table in the terminal. Nothing in it is read as markup."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmchat.data.doctor.findings import KINDS
from mmchat.data.doctor.run import Answer
from mmchat.data.doctor.wording import not_checked, verdict

STYLES = {"error": "bold red", "warning": "yellow"}


def findings_table(answer: Answer) -> Table:
    table = Table(title="findings", title_justify="left")
    table.add_column("severity")
    table.add_column("kind")
    table.add_column("findings", justify="right")
    table.add_column("what it means")
    for name, kind in KINDS.items():
        if count := answer.tally.findings[name]:
            table.add_row(Text(kind.severity, STYLES[kind.severity]), kind.title, f"{count:,}", kind.meaning)
    return table


def print_answer(console: Console, answer: Answer, files: list[str], command: str | None) -> None:
    def say(line: str, style: str = "") -> None:
        console.print(Text(line, style), soft_wrap=True)

    if answer.tally.findings:
        console.print(findings_table(answer))
    for line in not_checked(answer)[: 1 if answer.question.processor is None else 0]:
        say(f"not checked: {line}", "dim")
    for file in files:
        say(file)
    say(verdict(answer), "green" if answer.sound else "red")
    if command:
        say(f"next: {command}")
