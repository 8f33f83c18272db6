"""`mmchat COMMAND ...`: the table of commands. Only the module of the requested command is imported."""

import argparse
import sys
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from mmchat import __version__
from mmchat.command_line.arguments import HelpFormatter, OneLineParser
from mmchat.command_line.errors import EXIT_USER_ERROR, reporting
from mmchat.command_line.quiet import quiet_libraries
from mmchat.cpu_settings import restart_with_settings
from mmchat.errors import UserError, nearest


@dataclass(frozen=True)
class Command:
    """A command of one to three words.

    module: below mmchat.cli. It has EXAMPLE, add_arguments(parser) and run(arguments); or, if `entry` is set, a
        function of that name, arguments -> exit status, which parses its own arguments.
    summary: one line of `mmchat --help`.
    computes: whether it runs a model in this process, which is then restarted with `mmchat.cpu_settings`.
    """

    module: str
    summary: str
    entry: str = ""
    computes: bool = True


GROUPS: dict[str, dict[str, Command]] = {
    "Train": {
        "init": Command("init", "build an assistant from a language model and vision towers"),
        "resize": Command("resize", "give the vision towers of an assistant another input size"),
        "import": Command("import_", "convert an assistant published in another format"),
        "export": Command("export", "write an assistant in the format of another program"),
        "plan": Command("plan", "predict memory, steps and cost of a run before it starts", computes=False),
        "train": Command("train", "train as a YAML config says, with DeepSpeed", entry="launch_main", computes=False),
        "merge": Command("merge", "merge a LoRA adapter into its base model"),
        "push": Command("push", "upload a model to the Hugging Face hub", computes=False),
        "rerun": Command("rerun", "repeat the first steps of a run: are its losses the same?", computes=False),
        "replay": Command("replay", "show the samples of one training step with their losses"),
        "recipe list": Command("recipe.list", "list the configs that come with mmchat", computes=False),
        "recipe show": Command("recipe.show", "print one of these configs", computes=False),
        "recipe write": Command("recipe.write", "copy one of these configs to a file of your own", computes=False),
    },
    "Use": {
        "chat": Command("chat", "ask about images, once or in a conversation"),
        "caption": Command("caption", "describe every image of files and folders"),
        "ocr": Command("ocr", "read the text of images and PDF pages"),
        "demo": Command("demo", "chat about images in the browser", entry="main"),
        "serve": Command("serve", "answer requests in OpenAI's dialect over HTTP"),
    },
    "Evaluate": {
        "eval": Command("eval", "score an assistant on questions or on a named benchmark"),
        "eval tasks": Command("eval_tasks", "list the named benchmarks, or print one as a file", computes=False),
        "eval compare": Command("eval_compare", "compare two models on the same questions", computes=False),
        "eval score": Command("eval_score", "score answers that were kept, without the model", computes=False),
        "report": Command("report", "write one HTML page about a run, or about several", computes=False),
        "runs": Command("runs", "list runs: loss, scores, speed, what differs in configs", computes=False),
    },
    "Data": {
        "data check": Command("data.check", "find the errors in a data set, list its sound records", computes=False),
        "data show": Command("data.show", "show samples as training sees them", computes=False),
        "data index": Command("data.index", "measure the length of every sample", computes=False),
        "convert": Command("convert", "convert published data sets to LLaVA's JSONL", entry="main", computes=False),
    },
    "CLIP models": {
        "clip init": Command("clip.init", "build a dual encoder from a vision tower and a text encoder"),
        "clip convert": Command("clip.convert", "convert a published CLIP or SigLIP to a directory of mmchat"),
        "clip export": Command("clip.export", "write a dual encoder in the format of transformers"),
        "clip classify": Command("clip.classify", "classify images by labels in words"),
        "clip eval": Command("clip.eval", "score zero-shot classification or retrieval"),
        "clip probe": Command("clip.probe", "fit a linear probe on the features of a tower"),
        "clip search index": Command("clip.search_index", "index a folder of images for search"),
        "clip search query": Command("clip.search_query", "search an index by text or by image"),
    },
    "Vision towers": {
        "vision inspect": Command("vision.inspect", "show what a tower is and what it sees of an image"),
        "vision init": Command("vision.init", "put a classification head on a tower"),
    },
    "Help": {
        "env": Command("env", "print versions and hardware, for bug reports", computes=False),
    },
}
COMMANDS: dict[str, Command] = {name: command for group in GROUPS.values() for name, command in group.items()}
LONGEST_NAME = 3
"""Words in a command's name, at most."""


def load(command: Command) -> ModuleType:
    return import_module(f"mmchat.cli.{command.module}")


def build_parser(name: str) -> OneLineParser:
    """The parser of a command that does not parse its own arguments."""
    command = COMMANDS[name]
    module = load(command)
    parser = OneLineParser(
        prog=f"mmchat {name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog=f"example:\n  {module.EXAMPLE}",
        formatter_class=HelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def build_commands() -> dict[str, OneLineParser]:
    """All commands that have a parser, for the reference page and tests."""
    return {name: build_parser(name) for name, command in COMMANDS.items() if not command.entry}


def help_text(first_words: str = "") -> str:
    """The list of all commands in their groups, or of those that begin with these words, as `clip search` does."""
    begin = f"{first_words} " if first_words else ""
    chosen = {title: [name for name in group if name.startswith(begin)] for title, group in GROUPS.items()}
    width = max(len(name) for names in chosen.values() for name in names)
    lines = [f"usage: mmchat {begin}COMMAND ..."] + ["       mmchat --version"] * (not begin)
    for title, names in chosen.items():
        if names:
            lines += ["", f"{title}:", *(f"  {name:{width}}  {COMMANDS[name].summary}" for name in names)]
    return "\n".join([*lines, "", "`mmchat COMMAND --help` explains a command and shows an example."])


def asks_for_list(argv: list[str]) -> str | None:
    """The words whose commands the user asks for: "" for all of them; None if the arguments name a command."""
    words = argv[:-1] if argv and argv[-1] in ("-h", "--help") else argv
    first_words = " ".join(words)
    begin = f"{first_words} " if words else ""
    is_list = first_words not in COMMANDS and any(name.startswith(begin) for name in COMMANDS)
    return first_words if is_list else None


def parse(parser: OneLineParser, argv: list[str]) -> argparse.Namespace:
    """Commands with `takes_overrides` collect unknown options, `--key value` of a run's config, in `overrides`."""
    if parser.get_default("takes_overrides"):
        arguments, overrides = parser.parse_known_args(argv)
        return argparse.Namespace(**vars(arguments), overrides=overrides)
    # Intermixed: an optional question may follow the options, as in `chat MODEL --image a.png "why?"`.
    return parser.parse_intermixed_args(argv)


def find_command(argv: list[str]) -> tuple[str, list[str]]:
    """The command's name, and the arguments that follow it.

    Raises:
        UserError: there is no such command; names the nearest, if one is near.
    """
    for count in range(LONGEST_NAME, 0, -1):
        if (name := " ".join(argv[:count])) in COMMANDS:
            return name, argv[count:]
    group = f"{argv[0]} "
    if inner := [name.removeprefix(group) for name in COMMANDS if name.startswith(group)]:
        near = nearest(" ".join(argv[1:LONGEST_NAME]), inner) or nearest(argv[1], inner)
        raise _no_command(f"{group}{argv[1]}", near and f"{group}{near}", f"mmchat {group}--help")
    raise _no_command(argv[0], nearest(argv[0], COMMANDS), "mmchat --help")


def _no_command(name: str, near: str | None, listing: str) -> UserError:
    hint = f"; the nearest is {near!r}" if near else ""
    return UserError(f"there is no command {name!r}{hint} (see `{listing}`)")


def main(argv: list[str] | None = None) -> int:
    """Run a command. Without `argv` this process is the program `mmchat`, which may restart itself."""
    is_program, argv = argv is None, sys.argv[1:] if argv is None else argv
    with reporting():
        if (first_words := asks_for_list(argv)) is not None:
            print(help_text(first_words))
            return 0 if argv[-1:] in (["-h"], ["--help"]) else EXIT_USER_ERROR
        if argv[0] == "--version":
            print(f"mmchat {__version__}")
            return 0
        name, rest = find_command(argv)
        command = COMMANDS[name]
        if command.computes and is_program:
            restart_with_settings()
        if command.entry:
            return getattr(load(command), command.entry)(rest)
        parser = build_parser(name)
        arguments = parse(parser, rest)
        if command.computes:
            quiet_libraries()
        load(command).run(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
