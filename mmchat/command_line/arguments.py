"""Argument parsing of every program: argparse, with one line instead of a usage dump when an argument is wrong."""

import argparse
import math
import re
import sys
import textwrap
from collections.abc import Callable
from typing import NoReturn

from mmchat.command_line.errors import EXIT_USER_ERROR


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line that says where to read more."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)

    def add_details(self, text: str) -> None:
        """Append paragraphs to the description that `--help` prints."""
        self.description = f"{self.description}\n\n{text}"


class HelpFormatter(argparse.HelpFormatter):
    """Adds to each option its default or "required". Fills paragraphs, and keeps the lines of indented ones."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(p if "\n  " in f"\n{p}" else textwrap.fill(p, width) for p in paragraphs)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.option_strings and action.required:
            return f"{text} (required)"
        if action.default in (None, [], argparse.SUPPRESS) or action.default is False:
            return text
        return f"{text} (default: %(default)s)"


def positive(text: str) -> int:
    """Type of an option: an integer of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, found {text!r}")
    return int(text)


def number_from(least: float) -> Callable[[str], float]:
    """Type of an option: a finite number of at least `least`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            raise argparse.ArgumentTypeError(f"expected a number from {least:g} on, found {text!r}")
        return value

    return read


def device_name(text: str) -> str:
    """Type of `--device`: cpu, cuda, cuda:N or auto. Whether there is such a device, torch tells."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?|auto", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda, cuda:N or auto, found {text!r}")
    return text
