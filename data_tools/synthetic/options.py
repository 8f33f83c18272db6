"""Command-line options and output that the make_*.py scripts share."""

import argparse
from pathlib import Path
from typing import Any

from mmchat.command_line.arguments import HelpFormatter, OneLineParser, positive
from mmchat.constants import OCR_PROMPT
from synthetic.fonts import FONTS_HELP
from synthetic.preview import write_preview


def generation_parser(description: str, items: str, preview: int) -> OneLineParser:
    """A parser with the options of every script: --out, --seed, --workers and --preview.

    Args:
        description: the module docstring of the script.
        items: what the script generates, in the plural, for help texts.
        preview: default number of items on the preview sheet.
    """
    parser = OneLineParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--seed", type=int, default=0, help=f"random seed of the {items}")
    parser.add_argument("--workers", type=int, default=2, help="worker processes; 0 runs in this process")
    parser.add_argument("--preview", type=int, default=preview, help=f"{items} on the sheet preview.png; 0: no sheet")
    return parser


def add_count_option(parser: argparse.ArgumentParser, items: str, default: int = 1000) -> None:
    parser.add_argument("--count", type=positive, default=default, help=f"number of {items}")


def add_prompt_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", default=OCR_PROMPT, help="question below the image; may be empty")


def add_fonts_option(parser: argparse.ArgumentParser, *default: str) -> None:
    parser.add_argument("--fonts", nargs="+", default=list(default), metavar="PLACE", help=FONTS_HELP)


def print_preview(arguments: argparse.Namespace, name: str, **layout: Any) -> None:
    """Write the preview sheet of `OUT/NAME.jsonl` and print its path, unless --preview is 0."""
    if arguments.preview:
        print(f"preview: {write_preview(arguments.out / f'{name}.jsonl', arguments.preview, **layout)}")
