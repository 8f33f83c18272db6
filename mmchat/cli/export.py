"""`mmchat export`: an assistant in the format of another program."""

import argparse

from mmchat.command_line.options import add_model_directory, add_new_directory, require_empty

EXAMPLE = "mmchat export runs/assistant/model --to hf --out exported"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(
        "`--to hf` writes the one class of transformers that the shape of the assistant is. What the format cannot\n"
        "express is refused before anything is written. What was written is opened by the other program and compared."
    )
    add_model_directory(parser, "model directory of an assistant")
    parser.add_argument("--to", required=True, metavar="NAME", help="hf, or a format: internvl, llava")
    add_new_directory(parser)


def run(arguments: argparse.Namespace) -> None:
    require_empty(arguments.out)
    from mmchat.conversion import export_model

    lines = export_model(arguments.checkpoint, arguments.to, arguments.out)
    print(f"{arguments.out}: {lines[0]}", *(f"  {line}" for line in lines[1:]), sep="\n")
