"""`mmchat plan`: what a run will do and need, before a GPU hour is spent."""

import argparse
import os
from pathlib import Path

EXIT_CANNOT_RUN = 1

MEANING = """Reads config, texts and the model's shapes; no weight, and no image but those shown. Any key of the
config can be overridden as in `mmchat train`. docs/guides/planning.md says how the figures are made.

exit status: 0 it can run; 1 it cannot, with a line for each reason (nothing to learn in a source, slots that cannot
match, a sample that fits no row, records that would stop the run, too little memory); 2 a mistake in the config
"""


def add_commands(add) -> None:
    plan = add(
        "plan",
        "what a run will do, need and cost, before it runs",
        "mmchat plan configs/llava15/sft.yaml --model runs/llava15/shapes --ranks 8 --gpu H100-80GB",
    )
    plan.description = f"{plan.description}\n\n{MEANING}"
    plan.add_argument("config", metavar="CONFIG", type=Path, help="the run's YAML file")
    plan.add_argument("--ranks", type=int, default=1, help="GPUs of the run")
    plan.add_argument("--gpu", help="A100-40GB, A100-80GB, H100-80GB, H200, B200, L40S, RTX-4090, ...")
    plan.add_argument("--gpu-memory", type=float, metavar="GIB", help="memory of a GPU, where it is another")
    plan.add_argument("--mfu", type=float, default=0.4, help="share of its peak that a GPU will reach")
    plan.add_argument("--price-per-hour", type=float, metavar="PRICE", help="of all ranks together")
    plan.add_argument("--samples", type=int, default=1, help="of each source, shown as training will see them")
    plan.add_argument("--json", type=Path, metavar="FILE", help="write every figure there, too")
    plan.allow_abbrev = False  # or it would take a key of the config for the beginning of an option
    plan.set_defaults(run=run_plan, takes_overrides=True)


def run_plan(arguments: argparse.Namespace) -> None:
    # Nothing is computed, so nothing is gained by a GPU, and DeepSpeed is to plan for one wherever it is.
    os.environ["DS_ACCELERATOR"] = "cpu"
    from rich.console import Console

    from mmchat.errors import UserError
    from mmchat.files import write_json
    from mmchat.planning.cost import find_gpu
    from mmchat.planning.plan import Hardware, make_plan
    from mmchat.planning.tables import as_values, print_plan
    from mmchat.settings import load_settings
    from mmchat.training.config import RunConfig

    if arguments.ranks < 1 or not 0 < arguments.mfu <= 1:
        raise UserError("--ranks must be 1 or more, and --mfu above 0 and at most 1")
    config = load_settings(RunConfig, arguments.config, arguments.overrides)
    hardware = Hardware(
        ranks=arguments.ranks,
        gpu=find_gpu(arguments.gpu) if arguments.gpu else None,
        memory=int(arguments.gpu_memory * 2**30) if arguments.gpu_memory else None,
        mfu=arguments.mfu,
        price=arguments.price_per_hour,
    )
    plan = make_plan(config, hardware)
    print_plan(plan, Console(highlight=False), arguments.samples)
    if arguments.json:
        write_json(arguments.json, as_values(plan))
    if plan.problems:
        raise SystemExit(EXIT_CANNOT_RUN)
