"""`mmchat import`: an assistant published in another format becomes a model directory of mmchat."""

import argparse
from pathlib import Path

from mmchat.command_line.options import require_empty
from mmchat.command_line.quick_imports import quick_imports
from mmchat.hub import check_exists, hub_repos

EXAMPLE = "mmchat import llava-hf/llava-1.5-7b-hf runs/llava-1.5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="directory or hub name of a published assistant")
    parser.add_argument("out", metavar="OUT", type=Path, help="model directory to write; must not exist yet")
    parser.add_argument("--tokenizer", metavar="DIR_OR_NAME", help="tokenizer; default: the one in SOURCE")
    parser.add_argument(
        "--template", metavar="NAME", help="conversation template; default: the one that writes as SOURCE's own does"
    )
    llava = parser.add_argument_group("LLaVA in its original layout")
    llava.add_argument(
        "--base",
        metavar="DIR_OR_NAME",
        help="what a projector or LoRA adapter was trained on; default: the directory that the config names",
    )
    llava.add_argument(
        "--vision", metavar="DIR_OR_NAME", help="vision tower; default: the directory that the config names"
    )


def run(arguments: argparse.Namespace) -> None:
    require_empty(arguments.out)
    for source, what in (
        (arguments.source, "model"),
        (arguments.tokenizer, "tokenizer"),
        (arguments.base, "base model"),
    ):
        if source is not None:
            check_exists(source, what)
    with quick_imports():  # mistakes have been found
        from mmchat.conversion import import_model
        from mmchat.model.directory import save_assistant
    options = {name: getattr(arguments, name) for name in ("template", "base", "vision")}
    given = {name: value for name, value in options.items() if value is not None}
    model, processor = import_model(arguments.source, arguments.tokenizer, **given)
    model.config.base_models = hub_repos(arguments.source, arguments.base, arguments.vision)
    save_assistant(model, processor, arguments.out)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{arguments.out}: {parameters:,} parameters, {model.image_tokens} slots per image, {model.config.template}")
    print(f"next: mmchat chat {arguments.out} --image IMAGE")
