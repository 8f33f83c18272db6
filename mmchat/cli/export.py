"""`mmchat export`: an assistant, or a dual encoder, in the format of another program."""

import argparse
from pathlib import Path

from mmchat.command_line.options import add_model_directory, add_new_directory, require_empty
from mmchat.command_line.quick_imports import quick_imports
from mmchat.errors import UserError
from mmchat.model_kinds import ASSISTANT, DUAL_ENCODER, kind_of

EXAMPLE = "mmchat export runs/sft/model --to hf --out exported"

FORMATS = ("hf", "llava-hf", "llava-next", "llava-onevision", "internvl", "idefics3", "llava", "gguf")
"""`hf` and the names of `mmchat.conversion.formats.TARGETS`, which takes seconds to import."""
GGUF_DTYPES = ("f32", "f16", "bf16", "q8_0")
"""Those of `mmchat.conversion.formats.gguf`, likewise."""
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
        choices=FORMATS,
        metavar="NAME",
        help=f"hf, or a format: {', '.join(FORMATS[1:])}",
    )
    parser.add_argument(
        "--check",
        choices=["vllm"],
        help="compare with vLLM, too: the one that is installed here, or that of MMCHAT_VLLM_PYTHON",
    )
    parser.add_argument("--dtype", choices=GGUF_DTYPES, help="gguf: of the weights; default: as in MODEL")
    parser.add_argument(
        "--known-reader-bug",
        action="store_true",
        default=None,
        help="gguf: write towers with a class token, too, which llama.cpp reads wrongly (its issue 25814)",
    )
    add_new_directory(parser)


def run(arguments: argparse.Namespace) -> None:
    require_empty(arguments.out)
    options = {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None}
    if options and arguments.to != "gguf":
        raise UserError(f"export to {arguments.to} has no option {next(iter(options))!r}")
    kind = DUAL_ENCODER if kind_of(arguments.checkpoint) is DUAL_ENCODER else ASSISTANT
    kind.check_complete(arguments.checkpoint)
    with quick_imports():  # mistakes have been found
        from mmchat.conversion import export_model

    lines = export_model(arguments.checkpoint, arguments.to, arguments.out, arguments.check, **options)
    print_summary(arguments.out, lines)


def print_summary(out: Path, lines: list[str]) -> None:
    """What was written, then what was compared."""
    print(f"{out}: {lines[0]}", *(f"  {line}" for line in lines[1:]), sep="\n")
