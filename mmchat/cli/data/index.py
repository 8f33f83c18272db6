"""`mmchat data index`: the length of every sample, kept in the cache for packing and planning."""

import argparse
import time
from pathlib import Path
from typing import Any

from mmchat.cli.data.source_options import add_source_arguments, add_workers, open_processor, read_source_arguments

EXAMPLE = "mmchat data index configs/quickstart/sft.yaml --workers 2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details("Counts tokens, supervised tokens, images and views. The result is kept in the cache.")
    add_source_arguments(parser)
    add_workers(parser)


def run(arguments: argparse.Namespace) -> None:
    config, model, fit = read_source_arguments(arguments)
    from mmchat.data.lengths import config_measure, index_path, length_index
    from mmchat.data.sources import open_source
    from mmchat.terminal import PlainConsole

    processor = open_processor(model, fit)
    rows = []
    for name, settings in config.by_name().items():
        begun = time.perf_counter()
        source = open_source(settings.path, settings.image_root, settings.allow_http)
        measure = config_measure(settings, processor, config.max_length)
        path = index_path(source, measure)
        known = path.exists()
        index = length_index(source, measure, arguments.workers)
        rows.append((name, index, path, time.perf_counter() - begun, known))
    console = PlainConsole()
    console.print(lengths_table(rows))
    for name, _, path, _, known in rows:
        console.print(f"{name}: {'found' if known else 'kept'} in {path}", highlight=False, soft_wrap=True)


def lengths_table(rows: list[tuple[str, Any, Path, float, bool]]) -> Any:
    """A column per source: (name, LengthIndex, path, seconds, whether it was in the cache)."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="lengths", title_justify="left")
    table.add_column("")
    for name, *_ in rows:
        table.add_column(Text(name, overflow="fold"), justify="right")
    columns = [facts_of(index, path, seconds) for _, index, path, seconds, _ in rows]
    for fact in columns[0]:
        table.add_row(fact, *(column[fact] for column in columns))
    return table


def facts_of(index: Any, path: Path, seconds: float) -> dict[str, str]:
    import numpy as np

    tokens = index.tokens[index.usable]
    total = int(tokens.sum(dtype=np.int64))
    median, p95, longest = np.percentile(tokens, [50, 95, 100]) if len(tokens) else (0, 0, 0)
    _, supervised, images, views, patches, slots = (int(column.sum(dtype=np.int64)) for column in index.columns)
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
        "slots": f"{slots:,}",
        "bytes of the index": f"{path.stat().st_size if path.exists() else 0:,}",
        "seconds": f"{seconds:.1f}",
        "records/s": f"{len(index) / seconds:,.0f}",
    }
