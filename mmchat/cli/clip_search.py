"""`mmchat clip search index` and `mmchat clip search query`: images found by words, or by another image."""

import argparse
from pathlib import Path

from mmchat.command_line.arguments import positive
from mmchat.errors import UserError
from mmchat.files import shown
from mmchat.images import load_image


def add_commands(add) -> None:
    index = add(
        "clip search index",
        "look at every image of a folder once, to be searched; a rerun does what is new or changed",
        "mmchat clip search index photos --ckpt runs/clip/model --out photos.index",
    )
    index.add_argument("folder", metavar="FOLDER", type=Path, help="searched deeply")
    index.add_argument("--ckpt", required=True, type=Path, help="directory of a dual encoder")
    index.add_argument("--out", required=True, type=Path, metavar="INDEX", help="file to write, or to bring up to date")
    index.add_argument("--batch-size", type=positive, default=32, help="images per forward")
    index.set_defaults(run=run_index)

    query = add(
        "clip search query",
        "the images of an index that are most like a text, or most like an image",
        'mmchat clip search query photos.index "a dog on a beach" --top 12 --html sheet.html',
    )
    query.add_argument("index", metavar="INDEX", type=Path, help="what `mmchat clip search index` wrote")
    query.add_argument("text", metavar="TEXT", nargs="?", help="what to look for")
    query.add_argument("--image", type=Path, metavar="IMAGE", help="look for images like this one instead")
    query.add_argument("--ckpt", type=Path, help="directory of the dual encoder; not given: where the index says")
    query.add_argument("--top", type=positive, default=12, help="so many images")
    query.add_argument("--html", type=Path, metavar="FILE", help="write a contact sheet, one page by itself, too")
    query.add_argument("--truncate", action="store_true", help="cut a text that is too long, which is an error else")
    query.set_defaults(run=run_query)


def run_index(arguments: argparse.Namespace) -> None:
    from mmchat.contrastive.embedding import Embedder
    from mmchat.contrastive.search import index_folder

    embedder = Embedder.open(arguments.ckpt)
    place = str(arguments.ckpt.resolve())
    summary = index_folder(embedder, place, arguments.folder, arguments.out, arguments.batch_size)
    for _, problem in summary.unreadable:
        print(shown(problem))
    print(
        f"{summary.added} added, {summary.kept} were there already, {summary.removed} were removed, "
        f"{len(summary.unreadable)} could not be read: {arguments.out}"
    )


def run_query(arguments: argparse.Namespace) -> None:
    if (arguments.text is None) == (arguments.image is None):
        raise UserError("what to look for? give a text, or --image IMAGE; one of them")
    image = load_image(arguments.image) if arguments.image else None  # a mistake is told before weights are read
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mmchat.contrastive.embedding import Embedder
    from mmchat.contrastive.search import Index, write_sheet

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
    Console().print(table)
    if arguments.html:
        write_sheet(arguments.html, arguments.image or arguments.text, hits)
        print(arguments.html)
