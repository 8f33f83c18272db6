"""`mmchat plan`: what a run will do and need, before GPU time is spent on it."""

import argparse
import os
from pathlib import Path

from mmchat.command_line.arguments import number_from, positive
from mmchat.command_line.quick_imports import quick_imports
from mmchat.command_line.quiet import quiet_libraries

EXIT_CANNOT_RUN = 1
EXAMPLE = "mmchat plan configs/llava15/sft.yaml --model runs/llava15/shapes --ranks 8 --gpu H100-80GB"
DETAILS = """Reads the config, the texts and the shapes of the model; no weights, and no images but those shown.
Any config key can be overridden as in `mmchat train`. docs/guides/planning.md explains how the figures are computed.

exit status: 0 the run can start; 1 it cannot, with one line per reason (nothing to learn in a source, slots that do
not match, a sample too long for a row, records that would stop the run, too little memory); 2 a mistake in the
config"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(DETAILS)
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the run's YAML file")
    parser.add_argument("--ranks", type=positive, default=1, metavar="N", help="number of GPUs")
    parser.add_argument(
        "--gpu", metavar="NAME", help="A100-40GB, A100-80GB, H100-80GB, H200, B200, L40S, RTX-4090, ..."
    )
    parser.add_argument(
        "--gpu-memory", type=number_from(0), metavar="GIB", help="memory of one GPU, if --gpu does not list yours"
    )
    parser.add_argument("--mfu", type=float, default=0.4, help="assumed model FLOPs utilisation, above 0 and at most 1")
    parser.add_argument(
        "--price-per-hour", type=number_from(0), metavar="PRICE", help="price of all ranks together, for the cost"
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="samples of each source to print")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to this file")
    parser.allow_abbrev = False  # or a key of the config would be taken for an abbreviated option
    parser.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace) -> None:
    from mmchat.errors import UserError
    from mmchat.training.config import load_run_config
    from mmchat.training.monitoring.gpus import find_gpu
    from mmchat.training.preflight import check_inputs

    if not 0 < arguments.mfu <= 1:
        raise UserError(f"--mfu must be above 0 and at most 1, found {arguments.mfu}")
    gpu = find_gpu(arguments.gpu) if arguments.gpu else None
    config = load_run_config(arguments.config, arguments.overrides)
    check_inputs(config, arguments.ranks, weights=False)

    # Nothing is computed, so a GPU would not help, and DeepSpeed must plan alike on machines with and without one.
    os.environ["DS_ACCELERATOR"] = "cpu"
    quiet_libraries()
    with quick_imports():  # mistakes have been found
        from mmchat.files import write_json
        from mmchat.planning.plan import Hardware, make_plan
        from mmchat.planning.tables import as_values, print_plan
        from mmchat.terminal import PlainConsole

    hardware = Hardware(
        ranks=arguments.ranks,
        gpu=gpu,
        memory=int(arguments.gpu_memory * 2**30) if arguments.gpu_memory else None,
        mfu=arguments.mfu,
        price=arguments.price_per_hour,
    )
    plan = make_plan(config, hardware)
    print_plan(plan, PlainConsole(highlight=False), arguments.samples)
    if arguments.json:
        write_json(arguments.json, as_values(plan))
    if plan.problems:
        raise SystemExit(EXIT_CANNOT_RUN)
