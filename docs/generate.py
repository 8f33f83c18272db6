"""mkdocs hook: pages that are derived from the code, so that nothing generated is committed.

reference/cli.md comes from the argument parsers, reference/config.md from the schema of a run, contributing.md from
CONTRIBUTING.md.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mmchat.settings import Key

ROOT = Path(__file__).resolve().parents[1]
BREAK = r"\1<wbr>"
sys.path.insert(0, str(ROOT))  # the site describes this copy, not an installed one


def on_config(config: MkDocsConfig) -> None:
    """The design notes get their navigation from the topics of their index."""
    for entry in config.nav:
        if "Design notes" in entry:
            entry["Design notes"] += design_topics()


def design_topics() -> list[dict[str, list[str]]]:
    index = (ROOT / "docs" / "design" / "index.md").read_text(encoding="utf-8")
    topics = [part.partition("\n") for part in index.split("\n## ")[1:]]
    return [
        {title: [f"design/{name}" for name in re.findall(r"\]\(([\w-]+\.md)\)", links)]} for title, _, links in topics
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {
        "reference/cli.md": cli_page(),
        "reference/config.md": config_page(),
        "contributing.md": contributing_page(),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put a blank line between a paragraph and a list or table: Python-Markdown needs it, GitHub does not."""
    lines: list[str] = []
    fenced = False
    for line in markdown.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        before = lines[-1] if lines else ""
        kind = block_kind(line)
        if not fenced and kind and before.strip() and not before.startswith((" ", "#")) and block_kind(before) != kind:
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def block_kind(line: str) -> str | None:
    if line.startswith("|"):
        return "table"
    return "list" if re.match(r"[-*] |\d+\. ", line) else None


# Command line


def cli_page() -> str:
    from mmchat.cli.main import COMMANDS, GROUPS, build_commands

    parsers = build_commands()
    lines = [
        "# Command line",
        "",
        "Every command of `mmchat`, generated from its argument parser. `mmchat COMMAND --help` prints the same.",
        "Exit status: 0 done, 1 a check or a plan found something that must be fixed, 2 a mistake in what was asked;",
        "a run that was stopped by a signal exits with 130 or 143 ([Launching](../guides/launching.md)).",
    ]
    for title, group in GROUPS.items():
        lines += ["", f"**{title}**", "", "| command | what it does |", "|---|---|"]
        for name, command in group.items():
            lines.append(f"| [`mmchat {name}`](#{anchor(name)}) | {cell(command.summary)} |")
    for name, command in COMMANDS.items():
        lines += ["", f"## mmchat {name}", ""]
        lines += command_section(parsers[name]) if name in parsers else SECTIONS[name](sentence(command.summary))
    return "\n".join(lines) + "\n"


def train_section(summary: str) -> list[str]:
    from mmchat.cli.train_help import ENDS, MEANING, RANKS, USAGE

    usage = "\n\n".join([USAGE, MEANING, RANKS, ENDS])
    return [summary, "", "```text", usage, "```", "", "Its options are the [config keys](config.md)."]


def convert_section(summary: str) -> list[str]:
    return [summary, "", "It is `data_tools/convert.py` ([Converting data sets](../guides/data_tools.md))."]


def demo_section(summary: str) -> list[str]:
    return [summary, "", "It is `demo/app.py` ([Chat and captions](../guides/chat.md#browser))."]


SECTIONS = {"train": train_section, "convert": convert_section, "demo": demo_section}
"""Commands that parse their own arguments."""


def anchor(name: str) -> str:
    return "mmchat-" + name.replace(" ", "-")


def command_section(parser: argparse.ArgumentParser) -> list[str]:
    summary, _, rest = (parser.description or "").partition("\n")
    lines = [prose(sentence(summary)), ""]
    if rest.strip():
        lines += ["```text", rest.strip("\n"), "```", ""]
    example = (parser.epilog or "").strip()
    if example:
        code = re.sub(r"^examples?:\n", "", example)
        lines += ["```bash", "\n".join(line.removeprefix("  ") for line in code.splitlines()), "```", ""]
    rows = [option_row(action) for action in parser._actions if action.dest != "help"]
    if rows:
        lines += ["| argument | meaning | default |", "|---|---|---|", *rows]
    if parser.get_default("takes_overrides"):
        lines += ["", "Any [config key](config.md) can be overridden: `--key value`."]
    return lines


def option_row(action: argparse.Action) -> str:
    meaning = action.help or ""
    if "%(" in meaning:
        meaning %= vars(action)
    return f"| {code(name_of(action))} | {cell(meaning)} | {default_of(action)} |"


def name_of(action: argparse.Action) -> str:
    """`--metric NAME`, `--fusion channels|sequence`, `PATHS ...`."""
    value = "|".join(map(str, action.choices)) if action.choices else str(action.metavar or action.dest.upper())
    value += " ..." if action.nargs in ("+", "*") else ""
    if not action.option_strings:
        return value
    return action.option_strings[-1] if action.nargs == 0 else f"{action.option_strings[-1]} {value}"


def default_of(action: argparse.Action) -> str:
    if action.required or not (action.option_strings or action.nargs in ("?", "*")):
        return "required"
    if action.default in (None, False, [], (), argparse.SUPPRESS):
        return ""
    value = action.default
    return f"`{' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}`"


# Config keys


def config_page() -> str:
    from mmchat.settings import describe
    from mmchat.training.config import MAY_CHANGE_ON_RESUME, RunConfig

    keys = describe(RunConfig)
    alone = [key for key in keys if len(key.path) == 1 and not key.is_group]
    groups = list(dict.fromkeys(key.path[0] for key in keys if key not in alone))
    lines = [
        "# Config keys",
        "",
        "Every key of a run's YAML file, generated from its schema. A dot means a nested mapping, `NAME` a name that",
        "you choose. Any key can be overridden on the command line: `--optimizer.lr 1e-4`. An unknown key is an error",
        "that names the nearest valid one. [Training runs](../guides/training.md) explains how a config is used.",
        "",
        "## The run",
        "",
        *key_table(alone),
    ]
    for name in groups:
        group, *inner = [key for key in keys if key.path[0] == name]
        lines += ["", f"## {name}", "", prose(sentence(group.meaning)), ""]
        for kinds in dict.fromkeys(key.kinds for key in inner):
            lines += ["", f"### Of kind {', '.join(kinds)}", ""] if kinds else []
            lines += key_table([key for key in inner if key.kinds == kinds])
    lines += [
        "",
        "## What may change on resume",
        "",
        "These keys may differ when a run is resumed ([Stop and resume](../guides/stop_and_resume.md)). With another",
        "value of any other key it would be another run, which is refused.",
        "",
        *(f"- {code(key)}" for key in sorted(MAY_CHANGE_ON_RESUME)),
    ]
    return "\n".join(lines) + "\n"


def key_table(keys: "list[Key]") -> list[str]:
    rows = ["| key | meaning | type | default |", "|---|---|---|---|"]
    for key in keys:
        kind = "" if key.is_group else cell(key.type)
        rows.append(f"| {code('.'.join(key.path))} | {cell(key.meaning)} | {kind} | {quoted(key.default)} |")
    return rows


def quoted(default: str) -> str:
    return "required" if default == "required" else code(default) if default else ""


# Contributing


def contributing_page() -> str:
    """CONTRIBUTING.md with its links into docs/ made relative to the site."""
    path = ROOT / "CONTRIBUTING.md"
    text = path.read_text(encoding="utf-8") if path.exists() else "# Contributing\n"
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)([^)]*)\)", link_within_site, text)


def link_within_site(match: re.Match[str]) -> str:
    """A link to a file outside docs/ becomes the file's name."""
    text, target = match.groups()
    return match[0] if (ROOT / "docs" / target.partition("#")[0]).exists() else f"{text} (`{target}`)"


# Markdown


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")


def code(name: str) -> str:
    """Code that a browser may break at dots and underscores, which backticks do not allow."""
    return f"<code>{re.sub(r'([.]|&#95;|&#124;)', BREAK, escaped(name))}</code>"


def cell(text: str) -> str:
    """Text of a table cell: one line."""
    return prose(" ".join(text.split()))


def prose(text: str) -> str:
    """Text in which nothing is markup but code in backticks."""
    return "".join(part if part.startswith("`") else escaped(part) for part in re.split(r"(`[^`]*`)", text))


def escaped(text: str) -> str:
    return re.sub(r"[|<>*_\[\]{}&]", lambda found: f"&#{ord(found[0])};", text)
