"""Trains the same model on the same samples with transformers (A) and with mmchat (B), and says how they compare.

A is LlavaForConditionalGeneration with HF's Trainer and padding; B is what `mmchat train` runs. Weights are random and
images are made here. Both must find the same loss and gradient norms in fp32, or there is nothing to compare.
README.md says how to read the figures, RESULTS.md keeps them.

    python bench/train.py                                     # 0.1B on a CPU
    python bench/train.py --stage pretrain --environment tuned
    python bench/train.py --a logits_to_keep                  # or packed, or loop
    python bench/train.py --shape 1b --steps 20               # on a GPU
    python bench/train.py -- --workers 0                      # what follows -- overrides B's run config
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

from side_by_side.comparison import WARM, Measured, agree, disagreement, figures, medians, summary, told
from side_by_side.model_shapes import SHAPES
from side_by_side.variant import WAYS_OF_A

from mmchat.command_line.quiet import quiet_libraries
from mmchat.files import write_json

HERE = Path(__file__).resolve().parent
KEEPING = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=34359738368"
ENVIRONMENTS = {"default": {}, "tuned": {"GLIBC_TUNABLES": KEEPING}}
"""What is added to the environment of both."""


def main() -> None:
    arguments, overrides = parse(__doc__, Path("runs/bench/train.json"))
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments, overrides)
        bench.write_workload()
        found = bench.compare_in_fp32()
        rounds = [bench.round(number) for number in range(1, arguments.rounds + 1)]
    by_round = figures(rounds)
    line = f"{title(arguments)}: {summary(by_round)}; {told(found)}"
    if arguments.a == "packed":
        line += " (A padded: packed, its samples see each other, and no loss is B's)"
    measured = {"line": line, "median": medians(by_round), "by_round": by_round, "fp32": found, "rounds": rounds}
    asked = {**vars(arguments), "out": str(arguments.out), "overrides": overrides}
    write_json(arguments.out, {"date": time.strftime("%Y-%m-%d"), "asked": asked, "hardware": hardware(), **measured})
    say(f"everything is in {arguments.out}")
    print(line)


def parse(description: str, out: Path) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.1b", choices=SHAPES, help="0.1b: OPT-125M; 0.1b-smollm: SmolLM-135M")
    parser.add_argument("--stage", default="sft", choices=["sft", "pretrain"])
    parser.add_argument("--a", default="trainer", choices=WAYS_OF_A, help="how A is trained")
    parser.add_argument("--environment", default="default", choices=ENVIRONMENTS, help="the CPU's allocator")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help=f"measured ones in each round, after {WARM} others")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--checkpointing", action="store_true", help="both compute the language model's blocks again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=out)
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:at]), words[at + 1 :]


@dataclass
class Bench:
    folder: Path
    arguments: argparse.Namespace
    overrides: list[str]

    def write_workload(self) -> None:
        from side_by_side.workload import write_workload

        asked, shape = self.arguments, SHAPES[self.arguments.shape]
        say(f"writing the workload: {shape.named_after}")
        steps = WARM + asked.steps
        write_workload(self.folder, shape, asked.stage, asked.batch, steps, asked.seed, asked.checkpointing)

    def compare_in_fp32(self) -> dict[str, float]:
        """Relative differences in the first step; ends the program where they are too large."""
        # Packed, A computes another loss: then it is the padded one that must agree, with the same weights and samples.
        way = "trainer" if self.arguments.a == "packed" else self.arguments.a
        a = self.run(way, {}, 1, "fp32")
        b = self.run("ours", {}, 1, "fp32")
        found = disagreement(a, b)
        for name in ("loss", "grad_norm"):
            say(f"fp32: {name} {a['steps'][0][name]:.6f} of A, {b['steps'][0][name]:.6f} of B")
        if not agree(found):
            sys.exit(f"A and B do not compute the same; relative differences: {found}")
        return found

    def round(self, number: int) -> tuple[Measured, Measured]:
        pair = self.pair()
        say(f"round {number}: {summary(figures([pair]))}")
        return pair

    def pair(self, *words: str) -> tuple[Measured, Measured]:
        """Measurements of A and then of B, both given `words` besides."""
        added, steps = ENVIRONMENTS[self.arguments.environment], WARM + self.arguments.steps
        a = self.run(self.arguments.a, added, steps, "bf16", *words)
        return a, self.run("ours", added, steps, "bf16", *words)

    def run(self, variant: str, added: dict[str, str], steps: int, precision: str, *words: str) -> Measured:
        """A process of its own, given `words` besides. No settings of the allocator reach it but those of `added`."""
        out = self.folder / "measured.json"
        command = [sys.executable, "-m", "side_by_side.variant", variant, str(self.folder), str(out)]
        command += ["--steps", str(steps), "--precision", precision, *words]
        command += self.overrides if variant == "ours" else []
        kept = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES" and not k.startswith("MALLOC_")}
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"PYTHONPATH": os.pathsep.join(paths), "MMCHAT_CACHE": str(self.folder / "cache")}
        environment = {**kept, **added, **own}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout}\n{variant} ended with status {done.returncode}")
        return json.loads(out.read_text())


def title(arguments: argparse.Namespace) -> str:
    way = "" if arguments.a == "trainer" else f", A: {arguments.a}"
    return f"{arguments.shape} {arguments.stage}, environment {arguments.environment}{way}"


def hardware() -> dict[str, object]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return {"gpu": gpu, "cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg(), "platform": platform.platform()}


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
