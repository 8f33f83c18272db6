"""`mmchat clip export`: a dual encoder as transformers' CLIPModel or SiglipModel."""

import argparse

from mmchat.command_line.options import add_new_directory, require_empty

EXAMPLE = "mmchat clip export runs/clip/model --out runs/clip-transformers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details("Before it ends, the embeddings of the written model are compared with those of SOURCE.")
    parser.add_argument("source", metavar="SOURCE", help="dual encoder of mmchat, or what `mmchat clip convert` reads")
    add_new_directory(parser)


def run(arguments: argparse.Namespace) -> None:
    require_empty(arguments.out)
    from mmchat.contrastive.directory import load_clip, load_tokenizer
    from mmchat.contrastive.export import export_clip

    model = load_clip(arguments.source, dtype="float32")
    model_class = export_clip(model, load_tokenizer(arguments.source, model), arguments.out)
    print(f"{arguments.out}: transformers' {model_class.__name__}, embeddings compared with {arguments.source}")
