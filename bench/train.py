"""Compares training speed and memory of transformers (A) and mmchat (B), on the same model and samples.

A is LlavaForConditionalGeneration with HF's Trainer and padding; B is what `mmchat train` runs. Weights and images are
random. Both must compute the same loss and gradient norms in fp32. README.md explains the figures, RESULTS.md has
results.

    python bench/train.py                                     # 0.1B on a CPU
    python bench/train.py --stage pretrain --environment tuned
    python bench/train.py --a logits_to_keep                  # or packed, or loop
    python bench/train.py --shape 1b --steps 20               # on a GPU
    python bench/train.py -- --workers 0                      # options after -- override B's run config
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from side_by_side.comparison import (
    WARMUP_STEPS,
    Measurement,
    compare_rounds,
    fp32_summary,
    medians,
    relative_differences,
    summary,
    within_tolerance,
)
from side_by_side.model_shapes import SHAPES
from side_by_side.variant import A_VARIANTS

from mmchat.command_line.quiet import quiet_libraries
from mmchat.cpu_settings import ALLOCATOR
from mmchat.files import write_json

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = {"default": {}, "tuned": {"GLIBC_TUNABLES": ALLOCATOR}}
"""Environment variables added for both variants."""


def main() -> None:
    arguments, overrides = parse_arguments(__doc__, Path("runs/bench/train.json"))
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments, overrides)
        bench.write_workload()
        differences = bench.compare_in_fp32()
        rounds = [bench.round(number) for number in range(1, arguments.rounds + 1)]
    comparisons = compare_rounds(rounds)
    line = f"{title(arguments)}: {summary(comparisons)}; {fp32_summary(differences)}"
    if arguments.a == "packed":
        line += " (A padded; packed, its samples attend to each other, and its losses differ from B's)"
    results = {
        "line": line,
        "median": medians(comparisons),
        "by_round": comparisons,
        "fp32": differences,
        "rounds": rounds,
    }
    options = {**vars(arguments), "out": str(arguments.out), "overrides": overrides}
    write_json(
        arguments.out, {"date": time.strftime("%Y-%m-%d"), "options": options, "hardware": hardware(), **results}
    )
    log(f"all figures are in {arguments.out}")
    print(line)


def parse_arguments(description: str, out: Path) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.1b", choices=SHAPES, help="0.1b: OPT-125M; 0.1b-smollm: SmolLM-135M")
    parser.add_argument("--stage", default="sft", choices=["sft", "pretrain"])
    parser.add_argument("--a", default="trainer", choices=A_VARIANTS, help="how A trains")
    parser.add_argument("--environment", default="default", choices=ENVIRONMENTS, help="allocator settings on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=8, help=f"measured ones in each round, after {WARMUP_STEPS} others"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--checkpointing", action="store_true", help="gradient checkpointing of the language model, A and B"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=out)
    argv = sys.argv[1:]
    separator = argv.index("--") if "--" in argv else len(argv)
    return parser.parse_args(argv[:separator]), argv[separator + 1 :]


@dataclass
class Bench:
    folder: Path
    arguments: argparse.Namespace
    overrides: list[str]

    def write_workload(self) -> None:
        from side_by_side.workload import write_workload

        options, shape = self.arguments, SHAPES[self.arguments.shape]
        log(f"writing the workload: {shape.named_after}")
        steps = WARMUP_STEPS + options.steps
        write_workload(self.folder, shape, options.stage, options.batch, steps, options.seed, options.checkpointing)

    def compare_in_fp32(self) -> dict[str, float]:
        """Relative differences in the first step; exits if they are too large."""
        # The packed A computes another loss. The padded A is compared instead, with the same weights and samples.
        variant = "trainer" if self.arguments.a == "packed" else self.arguments.a
        a = self.run(variant, {}, 1, "fp32")
        b = self.run("ours", {}, 1, "fp32")
        differences = relative_differences(a, b)
        for name in ("loss", "grad_norm"):
            log(f"fp32: {name} {a['steps'][0][name]:.6f} of A, {b['steps'][0][name]:.6f} of B")
        if not within_tolerance(differences):
            sys.exit(f"A and B do not compute the same; relative differences: {differences}")
        return differences

    def round(self, number: int) -> tuple[Measurement, Measurement]:
        pair = self.pair()
        log(f"round {number}: {summary(compare_rounds([pair]))}")
        return pair

    def pair(self, *extra: str) -> tuple[Measurement, Measurement]:
        """Measurements of A and then of B, both with the `extra` arguments."""
        variables, steps = ENVIRONMENTS[self.arguments.environment], WARMUP_STEPS + self.arguments.steps
        a = self.run(self.arguments.a, variables, steps, "bf16", *extra)
        return a, self.run("ours", variables, steps, "bf16", *extra)

    def run(self, variant: str, variables: dict[str, str], steps: int, precision: str, *extra: str) -> Measurement:
        """Measure one variant in its own process.

        Args:
            variables: environment variables. Other allocator settings of this process are removed.
            extra: further arguments of `side_by_side.variant`.
        """
        out = self.folder / "measured.json"
        command = [sys.executable, "-m", "side_by_side.variant", variant, str(self.folder), str(out)]
        command += ["--steps", str(steps), "--precision", precision, *extra]
        command += self.overrides if variant == "ours" else []
        inherited = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES" and not k.startswith("MALLOC_")}
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"PYTHONPATH": os.pathsep.join(paths), "MMCHAT_CACHE": str(self.folder / "cache")}
        environment = {**inherited, **variables, **own}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout}\n{variant} failed with exit status {done.returncode}")
        return json.loads(out.read_text())


def title(arguments: argparse.Namespace) -> str:
    variant = "" if arguments.a == "trainer" else f", A: {arguments.a}"
    return f"{arguments.shape} {arguments.stage}, environment {arguments.environment}{variant}"


def hardware() -> dict[str, object]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return {"gpu": gpu, "cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg(), "platform": platform.platform()}


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
