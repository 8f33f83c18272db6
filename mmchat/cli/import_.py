"""`mmchat import`: an assistant that another program wrote becomes a model directory of ours."""

import argparse
from pathlib import Path

from mmchat.cli.init import claim


def add_commands(add) -> None:
    command = add(
        "import",
        "write an assistant that others published as a model directory of ours, to be trained or used",
        "mmchat import downloads/vary-toy runs/vary-toy",
    )
    command.add_argument("source", metavar="SRC", type=Path, help="directory: Vary's OPT, Vary's Qwen or Vary-toy")
    command.add_argument("out", metavar="DST", type=Path, help="model directory to write")
    command.add_argument("--tokenizer", help="directory or hub name; not given: the source's own")
    command.set_defaults(run=run_import)


def run_import(arguments: argparse.Namespace) -> None:
    claim(arguments.out)
    from mmchat.conversion import import_model
    from mmchat.model.directory import save_assistant

    model, processor = import_model(arguments.source, arguments.tokenizer)
    save_assistant(model, processor, arguments.out)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{arguments.out}: {parameters:,} parameters, {model.image_tokens} slots per image, {model.config.template}")
