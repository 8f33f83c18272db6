"""`mmchat COMMAND ...`: finds the command and hands over. Commands import torch only when they run."""

import argparse
import difflib
import sys

from mmchat.cli import (
    caption,
    chat,
    clip,
    clip_models,
    clip_search,
    data,
    data_check,
    merge,
    ocr,
    plan,
    probe,
    replay,
    report,
    vision,
)
from mmchat.cli import eval as evaluate
from mmchat.cli import import_ as importing
from mmchat.cli import init as initialise
from mmchat.cli.train import launch_main
from mmchat.command_line.arguments import HelpFormatter, OneLineParser
from mmchat.command_line.errors import EXIT_USER_ERROR, reporting
from mmchat.command_line.quiet import quiet_libraries
from mmchat.errors import UserError


def build_commands() -> dict[str, OneLineParser]:
    """Command (one to three words) -> its parser; `run` is the default that it sets."""
    commands: dict[str, OneLineParser] = {}

    def add(name: str, summary: str, example: str) -> OneLineParser:
        commands[name] = OneLineParser(
            prog=f"mmchat {name}",
            description=summary,
            epilog=f"example:\n  {example}",
            formatter_class=HelpFormatter,
        )
        return commands[name]

    for module in (
        initialise,
        clip_models,
        clip,
        clip_search,
        probe,
        vision,
        chat,
        caption,
        ocr,
        evaluate,
        data,
        data_check,
        plan,
        merge,
        importing,
        report,
        replay,
    ):
        module.add_commands(add)
    return commands


def help_text(commands: dict[str, OneLineParser]) -> str:
    summaries = {"train": "train as a YAML config says, through DeepSpeed's launcher"}
    summaries |= {name: parser.description.partition("\n")[0] for name, parser in commands.items()}
    widest = max(map(len, summaries))
    lines = [f"  {name:{widest}} {summary}" for name, summary in summaries.items()]
    return "usage: mmchat COMMAND ...\n\n" + "\n".join(lines) + "\n\n`mmchat COMMAND --help` tells more."


def parse(parser: OneLineParser, words: list[str]) -> argparse.Namespace:
    """Of a command that overrides keys of a run's config, what is no option of its own is left in `overrides`."""
    if parser.get_default("takes_overrides"):
        arguments, overrides = parser.parse_known_args(words)
        return argparse.Namespace(**vars(arguments), overrides=overrides)
    # Intermixed: an optional question may follow the options, as in `chat CKPT --image a.png "why?"`.
    return parser.parse_intermixed_args(words)


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["train"]:
        return launch_main(words[1:])
    commands = build_commands()
    if not words or words[0] in ("-h", "--help"):
        print(help_text(commands))
        return 0 if words else EXIT_USER_ERROR
    with reporting():
        name = next((n for n in (" ".join(words[:count]) for count in (3, 2, 1)) if n in commands), None)
        if name is None:
            near = difflib.get_close_matches(words[0], ["train", *commands], n=1, cutoff=0.0)[0]
            raise UserError(f"there is no command {words[0]!r}; the nearest is {near!r} (see `mmchat --help`)")
        arguments = parse(commands[name], words[len(name.split()) :])
        quiet_libraries()
        arguments.run(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
