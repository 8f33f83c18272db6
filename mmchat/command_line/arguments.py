"""How every program of ours reads its arguments: argparse, with one clear line where it prints a page."""

import argparse
import sys

from mmchat.command_line.errors import EXIT_USER_ERROR


class OneLineParser(argparse.ArgumentParser):
    """argparse without the usage dump: one clear line, and where to read more."""

    def error(self, message: str) -> None:
        print(f"error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults after each option, and examples with their line breaks."""


def positive(word: str) -> int:
    """An option's type: a number from 1 on."""
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, found {word!r}")
    return int(word)
