"""`mmchat export`: an assistant, or a dual encoder, in the format of another program."""

import argparse
from pathlib import Path

from mmchat.command_line.options import add_model_directory, add_new_directory, require_empty

EXAMPLE = "mmchat export runs/sft/model --to hf --out exported"

OPTIONS = ("dtype", "known_reader_bug")
"""Options of single formats. Another format refuses them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(
        "`--to hf` writes the one class of transformers that the shape of the assistant is. What the format cannot\n"
        "express is refused before anything is written. What was written is opened by the other program and compared."
    )
    add_model_directory(parser, "model directory of an assistant or dual encoder")
    parser.add_argument(
        "--to",
        required=True,
        metavar="NAME",
        help="hf, or a format: llava-hf, llava-next, llava-onevision, internvl, idefics3, llava, gguf",
    )
    parser.add_argument(
        "--check",
        choices=["vllm"],
        help="compare with vLLM, too: the one that is installed here, or that of MMCHAT_VLLM_PYTHON",
    )
    parser.add_argument("--dtype", metavar="NAME", help="gguf: f32, f16, bf16 or q8_0; default: as in MODEL")
    parser.add_argument(
        "--known-reader-bug",
        action="store_true",
        default=None,
        help="gguf: write towers with a class token, too, which llama.cpp reads wrongly (its issue 25814)",
    )
    add_new_directory(parser)


def run(arguments: argparse.Namespace) -> None:
    require_empty(arguments.out)
    from mmchat.conversion import export_model

    options = {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None}
    lines = export_model(arguments.checkpoint, arguments.to, arguments.out, arguments.check, **options)
    print_summary(arguments.out, lines)


def print_summary(out: Path, lines: list[str]) -> None:
    """What was written, then what was compared."""
    print(f"{out}: {lines[0]}", *(f"  {line}" for line in lines[1:]), sep="\n")
