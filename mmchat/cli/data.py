"""`mmchat data show` and `mmchat data index`: samples as training sees them, and how long all of them are."""

import argparse
import time
from pathlib import Path
from typing import Any

from mmchat.cli.data_source import add_source_arguments, open_processor, read_source_arguments
from mmchat.command_line.arguments import positive
from mmchat.errors import UserError


def add_commands(add) -> None:
    show = add(
        "data show",
        "show samples as training sees them: what is learned, control tokens, image slots and images",
        "mmchat data show data/quickstart/train.json --model runs/quickstart/model --random --html samples.html",
    )
    add_source_arguments(show)
    chosen = show.add_mutually_exclusive_group()
    chosen.add_argument("--records", type=_numbers, help="these records of each source, as 0,5,7, counted from 0")
    chosen.add_argument("--number", type=positive, default=3, help="so many records of each source")
    show.add_argument("--random", action="store_true", help="take them at random, not from the beginning")
    show.add_argument("--seed", type=int, default=0, help="of --random")
    show.add_argument("--only", metavar="NAME", help="one of several sources")
    show.add_argument("--tokens", action="store_true", help="show where tokens end, and their ids")
    show.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page instead")
    show.set_defaults(run=run_show)

    index = add(
        "data index",
        "measure every sample of every source: tokens, supervised tokens, images; kept in the cache",
        "mmchat data index configs/quickstart/sft.yaml --workers 2",
    )
    add_source_arguments(index)
    index.add_argument("--workers", type=int, help="processes, 0 for none beside this one; not given: one per core")
    index.set_defaults(run=run_index)


def run_show(arguments: argparse.Namespace) -> None:
    if arguments.records and arguments.random:
        raise UserError("--records names the records, --random takes any: give one of them")
    config, model, fit = read_source_arguments(arguments)
    from rich.console import Console

    from mmchat.data.preview.html import write_page
    from mmchat.data.preview.preview import choose_records, open_unscanned, preview_record
    from mmchat.data.preview.terminal import print_samples

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
        print_samples(Console(), samples, arguments.tokens)


def run_index(arguments: argparse.Namespace) -> None:
    config, model, fit = read_source_arguments(arguments)
    from rich.console import Console

    from mmchat.data.lengths import LengthMeasure, index_path, length_index
    from mmchat.data.sources import open_source

    processor = open_processor(model, fit)
    rows = []
    for name, settings in config.by_name().items():
        begun = time.perf_counter()
        source = open_source(settings.path, settings.image_root, settings.allow_http)
        measure = LengthMeasure(processor, config.max_length, settings.template, settings.max_turns)
        path = index_path(source, measure)
        known = path.exists()
        index = length_index(source, measure, arguments.workers)
        rows.append((name, index, path, time.perf_counter() - begun, known))
    console = Console()
    console.print(_lengths_table(rows))
    for name, _, path, _, known in rows:
        console.print(
            f"{name}: {'found' if known else 'kept'} in {path}", markup=False, highlight=False, soft_wrap=True
        )


def _lengths_table(rows: list[tuple[str, Any, Path, float, bool]]) -> Any:
    """A column per source: (name, LengthIndex, path, seconds, whether it was in the cache)."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="lengths", title_justify="left")
    table.add_column("")
    for name, *_ in rows:
        table.add_column(Text(name, overflow="fold"), justify="right")
    columns = [_facts(index, path, seconds) for _, index, path, seconds, _ in rows]
    for fact in columns[0]:
        table.add_row(fact, *(column[fact] for column in columns))
    return table


def _facts(index: Any, path: Path, seconds: float) -> dict[str, str]:
    import numpy as np

    tokens = index.tokens[index.usable]
    total = int(tokens.sum(dtype=np.int64))
    median, p95, longest = np.percentile(tokens, [50, 95, 100]) if len(tokens) else (0, 0, 0)
    _, supervised, images, views, patches = (int(column.sum(dtype=np.int64)) for column in index.columns)
    return {
        "samples": f"{len(index):,}",
        "usable": f"{len(tokens):,}",
        "tokens": f"{total:,}",
        "tokens, median": f"{median:,.0f}",
        "tokens, 95 of 100": f"{p95:,.0f}",
        "tokens, most": f"{longest:,.0f}",
        "supervised": f"{100 * supervised / max(total, 1):.1f} %",
        "images": f"{images:,}",
        "views": f"{views:,}",
        "patches": f"{patches:,}",
        "bytes of the index": f"{path.stat().st_size if path.exists() else 0:,}",
        "seconds": f"{seconds:.1f}",
        "records/s": f"{len(index) / seconds:,.0f}",
    }


def _numbers(words: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers as 0,5,7, found {words!r}") from None
