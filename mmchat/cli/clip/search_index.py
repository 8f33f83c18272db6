"""`mmchat clip search index`: the embeddings of a folder of images, for `mmchat clip search query`."""

import argparse
from pathlib import Path

from mmchat.command_line.options import add_batch_size
from mmchat.files import shown

EXAMPLE = "mmchat clip search index data/quickstart/named --ckpt runs/quickstart/tower/model --out runs/named.index"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details("Run it again to update the index: only new and changed images are read.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of images, searched recursively")
    parser.add_argument("--ckpt", required=True, type=Path, metavar="MODEL", help="directory of a CLIP or SigLIP model")
    parser.add_argument("--out", required=True, type=Path, metavar="INDEX", help="file to write or update")
    add_batch_size(parser, 32)


def run(arguments: argparse.Namespace) -> None:
    from mmchat.contrastive.embedding import Embedder
    from mmchat.contrastive.search import index_folder

    embedder = Embedder.open(arguments.ckpt)
    model = str(arguments.ckpt.resolve())
    summary = index_folder(embedder, model, arguments.folder, arguments.out, arguments.batch_size)
    for _, problem in summary.unreadable:
        print(shown(problem))
    print(
        f"{summary.added} added, {summary.kept} unchanged, {summary.removed} removed, "
        f"{len(summary.unreadable)} could not be read: {arguments.out}"
    )
