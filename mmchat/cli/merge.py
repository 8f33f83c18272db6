"""`mmchat merge`: a LoRA adapter and its base model become one model directory."""

import argparse

from mmchat.command_line.options import add_new_directory, require_empty
from mmchat.command_line.quick_imports import quick_imports
from mmchat.model_kinds import base_of_adapter, check_adapter

EXAMPLE = "mmchat merge runs/lora/adapter --out runs/lora-merged"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="the adapter/ folder of a run, or a hub name")
    parser.add_argument("--base", metavar="DIR_OR_NAME", help="base model; default: the one named in the adapter")
    add_new_directory(parser)


def run(arguments: argparse.Namespace) -> None:
    require_empty(arguments.out)
    base_of_adapter(check_adapter(arguments.adapter), arguments.base)
    with quick_imports():  # mistakes have been found
        from mmchat.model.directory import save_assistant
        from mmchat.model.lora_adapter import load_adapter, merge

    adapter, processor = load_adapter(arguments.adapter, arguments.base)
    model, difference = merge(adapter, processor)
    save_assistant(model, processor, arguments.out)
    print(f"{arguments.out}: merged; logits differ from the adapted model's by at most {difference:.1e}")
