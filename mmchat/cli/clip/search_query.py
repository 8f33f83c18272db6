"""`mmchat clip search query`: the images of an index that are nearest to a text or an image."""

import argparse
from pathlib import Path

from mmchat.cli.clip.label_options import add_truncate
from mmchat.cli.clip.sources import check_dual_encoder
from mmchat.command_line.arguments import positive
from mmchat.command_line.quick_imports import quick_imports
from mmchat.errors import UserError
from mmchat.files import shown
from mmchat.images import load_image

EXAMPLE = 'mmchat clip search query runs/named.index "a red 7" --top 12 --html results.html'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", type=Path, help="file that `mmchat clip search index` wrote")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="text to search for")
    parser.add_argument("--image", type=Path, metavar="FILE", help="search for images like this one instead")
    parser.add_argument("--ckpt", type=Path, metavar="MODEL", help="CLIP model; default: the one that made the index")
    parser.add_argument("--top", type=positive, default=12, metavar="N", help="number of images")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the images to a self-contained page")
    add_truncate(parser)


def run(arguments: argparse.Namespace) -> None:
    if (arguments.text is None) == (arguments.image is None):
        raise UserError("what to look for? give a text, or --image IMAGE; one of them")
    image = load_image(arguments.image) if arguments.image else None  # fails before the weights are read
    if not arguments.index.is_file():
        make = f"mmchat clip search index FOLDER --ckpt MODEL --out {arguments.index}"
        raise UserError(f"{arguments.index} does not exist; make it with `{make}`")
    if arguments.ckpt:
        check_dual_encoder(arguments.ckpt)
    with quick_imports():  # mistakes have been found
        from rich.table import Table
        from rich.text import Text

        from mmchat.contrastive.embedding import Embedder
        from mmchat.contrastive.search import Index, write_sheet
        from mmchat.terminal import PlainConsole
    index = Index(arguments.index)
    embedder = Embedder.open(arguments.ckpt or index.checkpoint, arguments.truncate)
    index.check(embedder)
    query = embedder.texts([arguments.text]) if image is None else embedder.images([image])
    hits = index.nearest(query[0], arguments.top)
    table = Table(show_edge=False)
    table.add_column("", justify="right")
    table.add_column("similarity", justify="right")
    table.add_column("image", overflow="fold")
    for number, hit in enumerate(hits, 1):
        table.add_row(str(number), f"{hit.similarity:.3f}", Text(shown(hit.path)))
    PlainConsole().print(table)
    if arguments.html:
        write_sheet(arguments.html, arguments.image or arguments.text, hits)
        print(arguments.html)
