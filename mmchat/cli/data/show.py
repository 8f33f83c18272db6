"""`mmchat data show`: samples as training sees them, in the terminal or as a page."""

import argparse
from pathlib import Path

from mmchat.cli.data.source_options import add_source_arguments, open_processor, read_source_arguments
from mmchat.command_line.arguments import positive
from mmchat.errors import UserError

EXAMPLE = "mmchat data show data/quickstart/train.json --model runs/quickstart/model --random --html samples.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(
        "Shows which tokens are supervised, control tokens, image slots, and images after preprocessing."
    )
    add_source_arguments(parser)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--records", type=record_numbers, metavar="N,N", help="these records of each source, from 0")
    choice.add_argument("--number", type=positive, default=3, metavar="N", help="number of records of each source")
    parser.add_argument("--random", action="store_true", help="choose them at random instead of from the beginning")
    parser.add_argument("--seed", type=int, default=0, help="random seed of --random")
    parser.add_argument("--only", metavar="NAME", help="only this source of a run")
    parser.add_argument("--tokens", action="store_true", help="mark token boundaries and print token ids")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page instead")


def run(arguments: argparse.Namespace) -> None:
    if arguments.records and arguments.random:
        raise UserError("--records names the records, --random takes any: give one of them")
    config, model, fit = read_source_arguments(arguments)
    from mmchat.data.preview.html import write_page
    from mmchat.data.preview.preview import choose_records, open_unscanned, preview_record
    from mmchat.data.preview.terminal import print_samples
    from mmchat.terminal import PlainConsole

    sources = config.by_name()
    if arguments.only is not None:
        if arguments.only not in sources:
            raise UserError(f"there is no source {arguments.only!r}; there are {', '.join(sources)}")
        sources = {arguments.only: sources[arguments.only]}
    processor = open_processor(model, fit)
    samples = []
    for name, source in sources.items():
        part = open_unscanned(name, source)
        seed = arguments.seed if arguments.random else None
        for place in arguments.records or choose_records(part, arguments.number, seed):
            samples.append(preview_record(part, place, processor, config.max_length))
    if arguments.html:
        write_page(arguments.html, samples, arguments.source)
        print(arguments.html)
    else:
        print_samples(PlainConsole(), samples, arguments.tokens)


def record_numbers(text: str) -> list[int]:
    """Type of `--records`: 0,5,7."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers as 0,5,7, found {text!r}") from None
