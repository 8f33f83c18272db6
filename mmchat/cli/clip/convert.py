"""`mmchat clip convert`: a published CLIP or SigLIP becomes a directory of mmchat."""

import argparse

from mmchat.command_line.options import add_new_directory, add_trust_torchscript, require_empty
from mmchat.command_line.quick_imports import quick_imports
from mmchat.hub import check_exists

EXAMPLE = "mmchat clip convert ViT-B-32.pt --tokenizer bpe_simple_vocab_16e6.txt.gz --out runs/clip"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="OpenAI archive or state dict, open_clip directory or file, transformers directory or hub name",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE_OR_NAME",
        help="directory, hub name, or CLIP's bpe_simple_vocab_16e6.txt.gz; default: the one of SOURCE",
    )
    add_trust_torchscript(parser)
    add_new_directory(parser)


def run(arguments: argparse.Namespace) -> None:
    require_empty(arguments.out)
    check_exists(arguments.source, "dual encoder")
    if arguments.tokenizer:
        check_exists(arguments.tokenizer, "tokenizer")
    with quick_imports():  # mistakes have been found
        from mmchat.contrastive.directory import load_clip, load_tokenizer, save_clip
    model = load_clip(arguments.source, trust_torchscript=arguments.trust_torchscript)
    tokenizer = load_tokenizer(arguments.tokenizer or arguments.source, model)
    save_clip(model, tokenizer, arguments.out)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{arguments.out}: {parameters:,} parameters, {len(tokenizer):,} tokens, texts of at most "
        f"{model.config.context_length}"
    )
