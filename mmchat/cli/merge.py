"""`mmchat merge`: a LoRA adapter and the model it was trained on become one model directory."""

import argparse
from pathlib import Path

from mmchat.cli.init import claim


def add_commands(add) -> None:
    command = add(
        "merge",
        "write the whole model that a LoRA adapter and its base make",
        "mmchat merge runs/lora/adapter --out runs/lora-merged",
    )
    command.add_argument("adapter", metavar="ADAPTER_DIR", type=Path, help="adapter/ of a run's directory")
    command.add_argument("--base", type=Path, help="model directory it was trained on; not given: where it says")
    command.add_argument("--out", type=Path, required=True, help="model directory to write")
    command.set_defaults(run=run_merge)


def run_merge(arguments: argparse.Namespace) -> None:
    claim(arguments.out)
    from mmchat.model.adapter import load_adapter, merge
    from mmchat.model.directory import save_assistant

    adapter, processor = load_adapter(arguments.adapter, arguments.base)
    model, difference = merge(adapter, processor)
    save_assistant(model, processor, arguments.out)
    print(f"{arguments.out}: merged; logits differ from the adapted model's by at most {difference:.1e}")
