"""Runs one variant in its own process: trains on a workload and writes the measurements as JSON."""

import argparse
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

from mmchat.command_line.quiet import quiet_libraries
from mmchat.files import write_json

A_VARIANTS = ("trainer", "logits_to_keep", "packed", "loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("variant", choices=[*A_VARIANTS, "ours"])
    parser.add_argument("workload", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--kinds", action="store_true", help="measure memory by kind of tensor (slower)")
    arguments, overrides = parser.parse_known_args()
    quiet_libraries()
    # Both variants import all modules, so that memory is counted from the same baseline.
    import torch

    from mmchat.training.config import load_run_config
    from mmchat.training.distributed import process_group
    from mmchat.training.monitoring.peak_flops import find_peak_flops
    from side_by_side import mmchat_run, reference_run
    from side_by_side.memory_by_kind import MemoryByKind
    from side_by_side.recorder import Recorder

    config = load_run_config(arguments.workload / "run.yaml", overrides)
    if arguments.variant == "ours":
        process_group.start()  # only for ours: with a process group, Trainer would use DDP
    peak = find_peak_flops(config.precision, config.monitoring.peak_tflops)
    kinds = MemoryByKind() if arguments.kinds else None
    # A's samples are loaded before memory is counted; B reads its samples during training.
    samples = None if arguments.variant == "ours" else torch.load(arguments.workload / "samples.pt")
    recorder = Recorder(kinds)
    with kinds or nullcontext():
        if arguments.variant == "ours":
            mmchat_run.train(config, arguments.steps, recorder)
        else:
            reference_run.train(config, samples, arguments.steps, arguments.variant, recorder)
    packages = {name: version(name) for name in ("mmchat", "torch", "transformers", "deepspeed")}
    write_json(arguments.out, {**recorder.result(), "peak": peak.flops, "peak_source": peak.source, **packages})
    process_group.stop()


if __name__ == "__main__":
    main()
