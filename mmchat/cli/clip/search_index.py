"""`mmchat clip search index`: the embeddings of a folder of images, for `mmchat clip search query`."""

import argparse
from pathlib import Path

from mmchat.cli.clip.sources import check_dual_encoder
from mmchat.command_line.options import add_batch_size
from mmchat.command_line.quick_imports import quick_imports
from mmchat.files import shown
from mmchat.images import find_images

EXAMPLE = "mmchat clip search index data/quickstart/named --ckpt runs/quickstart/tower/model --out runs/named.index"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details("Run it again to update the index: only new and changed images are read.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of images, searched recursively")
    parser.add_argument("--ckpt", required=True, type=Path, metavar="MODEL", help="directory of a CLIP or SigLIP model")
    parser.add_argument("--out", required=True, type=Path, metavar="INDEX", help="file to write or update")
    add_batch_size(parser, 32)


def run(arguments: argparse.Namespace) -> None:
    find_images([arguments.folder])  # or there is nothing to index
    check_dual_encoder(arguments.ckpt)
    with quick_imports():  # mistakes have been found
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
