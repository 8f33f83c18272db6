"""`mmchat clip init`: a dual encoder from a vision tower and a text encoder."""

import argparse

from mmchat.command_line.arguments import positive
from mmchat.command_line.options import add_new_directory, add_seed, require_empty
from mmchat.command_line.quick_imports import quick_imports
from mmchat.hub import check_exists
from mmchat.vision.spec import FITS

EXAMPLE = (
    "mmchat clip init --vision configs/quickstart/tower.json --text configs/quickstart/text.json "
    "--tokenizer runs/quickstart/tokenizer --out runs/clip-init"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details("The result is the start of a contrastive training run (docs/guides/contrastive.md).")
    parser.add_argument("--vision", required=True, metavar="TOWER", help="tower config .json, or directory of a tower")
    parser.add_argument(
        "--fit",
        choices=[fit for fit in FITS if fit != "native"],
        help="how an image is fitted to the input size; default: the tower's own",
    )
    parser.add_argument(
        "--text",
        required=True,
        metavar="ENCODER",
        help=".json with values of CLIPTextConfig or, with a model_type, of another text config of transformers; or "
        "directory or hub name of a text encoder, whose weights are kept",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="FILE_OR_NAME",
        help="directory, hub name, or CLIP's bpe_simple_vocab_16e6.txt.gz",
    )
    parser.add_argument("--projection-dim", type=positive, default=512, metavar="N", help="width of the embeddings")
    parser.add_argument(
        "--pool",
        default="pooled",
        choices=["pooled", "max"],
        help="pooled output of the tower, or maximum over patches",
    )
    parser.add_argument(
        "--text-pool",
        default="last",
        choices=["last", "first", "mean", "padded"],
        help="tokens that give the embedding of a caption; padded: as in SigLIP, by the head of the text encoder",
    )
    parser.add_argument("--sigmoid", action="store_true", help="SigLIP's loss, which adds a bias to the temperature")
    parser.add_argument(
        "--context-length",
        type=positive,
        metavar="N",
        help="most tokens of a caption; default: the encoder's positions",
    )
    add_seed(parser)
    add_new_directory(parser)


def run(arguments: argparse.Namespace) -> None:
    require_empty(arguments.out)
    check_exists(arguments.vision, "vision tower")
    check_exists(arguments.text, "text encoder")
    check_exists(arguments.tokenizer, "tokenizer")
    with quick_imports():  # mistakes have been found
        import torch

        from mmchat.contrastive.directory import init_clip, open_text_encoder
        from mmchat.vision import load_tower
    torch.manual_seed(arguments.seed)
    model = init_clip(
        load_tower(arguments.vision, fit=arguments.fit),
        open_text_encoder(arguments.text),
        arguments.tokenizer,
        arguments.projection_dim,
        arguments.pool,
        arguments.out,
        text_pool=arguments.text_pool,
        sigmoid=arguments.sigmoid,
        context_length=arguments.context_length,
    )
    print(f"{arguments.out}: {sum(p.numel() for p in model.parameters()):,} parameters, pool {arguments.pool}")
