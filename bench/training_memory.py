"""What the memory of a training step is for, with transformers (A) and with mmchat (B): the same step as in train.py.

Looking at every tensor costs time, so speed is measured by train.py and memory by kind here. README.md says what the
kinds are.

    python bench/training_memory.py
    python bench/training_memory.py --stage pretrain --a logits_to_keep
    python bench/training_memory.py -- --objective.packing null        # what follows -- overrides B's run config
"""

import tempfile
from pathlib import Path

from side_by_side.comparison import Measured, told
from train import Bench, hardware, parse, title

from mmchat.command_line.quiet import quiet_libraries
from mmchat.files import write_json

KINDS = ("parameters", "gradients", "moments", "saved")


def main() -> None:
    arguments, overrides = parse(__doc__, Path("runs/bench/training_memory.json"))
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments, overrides)
        bench.write_workload()
        found = bench.compare_in_fp32()
        a, b = bench.pair("--kinds")
    held = {"a": a["kinds"], "b": b["kinds"], "peak_a": a["memory"], "peak_b": b["memory"]}
    write_json(
        arguments.out, {"hardware": hardware(), "held": held, "workers_b": b["memory_of_workers"], "fp32": found}
    )
    print(f"{title(arguments)}; {told(found)}\n{table(a, b)}")


def table(a: Measured, b: Measured) -> str:
    """For people, in GiB."""
    lines = [f"{'GiB':12}{'A':>8}{'B':>8}{'B / A':>8}"]
    rows = [(kind, a["kinds"][kind], b["kinds"][kind]) for kind in KINDS] + [("peak", a["memory"], b["memory"])]
    lines += [f"{name:12}{one / 2**30:8.3f}{other / 2**30:8.3f}{other / one:8.2f}" for name, one, other in rows]
    for name, (size, shape) in (("A", a["kinds"]["largest_saved"]), ("B", b["kinds"]["largest_saved"])):
        lines.append(f"the largest tensor that {name} saves: {shape}, {size / 2**30:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
