"""`mmchat clip export`: a dual encoder as transformers' CLIPModel or SiglipModel."""

import argparse

from mmchat.cli.clip.sources import check_dual_encoder
from mmchat.cli.export import print_summary
from mmchat.command_line.options import add_new_directory, require_empty
from mmchat.command_line.quick_imports import quick_imports

EXAMPLE = "mmchat clip export runs/digits/clip/model --out runs/digits/clip-transformers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(
        "Before it ends, the embeddings of the written model are compared with those of SOURCE. For a directory of\n"
        "mmchat, `mmchat export SOURCE --to hf` is the same."
    )
    parser.add_argument("source", metavar="SOURCE", help="dual encoder of mmchat, or what `mmchat clip convert` reads")
    add_new_directory(parser)


def run(arguments: argparse.Namespace) -> None:
    require_empty(arguments.out)
    check_dual_encoder(arguments.source)
    with quick_imports():  # mistakes have been found
        from mmchat.contrastive.export import export_dual_encoder
    print_summary(arguments.out, export_dual_encoder(arguments.source, arguments.out))
