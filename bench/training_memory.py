"""Memory of a training step by kind of tensor, with transformers (A) and mmchat (B): the same step as in train.py.

Inspecting every tensor costs time, so speed is measured by train.py only. README.md explains the kinds.

    python bench/training_memory.py
    python bench/training_memory.py --stage pretrain --a logits_to_keep
    python bench/training_memory.py -- --objective.packing null        # options after -- override B's run config
"""

import tempfile
from pathlib import Path

from side_by_side.comparison import Measurement, fp32_summary
from train import Bench, hardware, parse_arguments, title

from mmchat.command_line.quiet import quiet_libraries
from mmchat.files import write_json

KINDS = ("parameters", "gradients", "moments", "saved")


def main() -> None:
    arguments, overrides = parse_arguments(__doc__, Path("runs/bench/training_memory.json"))
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments, overrides)
        bench.write_workload()
        differences = bench.compare_in_fp32()
        a, b = bench.pair("--kinds")
    sizes = {"a": a["kinds"], "b": b["kinds"], "peak_a": a["memory"], "peak_b": b["memory"]}
    workers = b["memory_of_workers"]
    write_json(arguments.out, {"hardware": hardware(), "bytes": sizes, "workers_b": workers, "fp32": differences})
    print(f"{title(arguments)}; {fp32_summary(differences)}\n{table(a, b)}")


def table(a: Measurement, b: Measurement) -> str:
    """GiB by kind, as text."""
    lines = [f"{'GiB':12}{'A':>8}{'B':>8}{'B / A':>8}"]
    rows = [(kind, a["kinds"][kind], b["kinds"][kind]) for kind in KINDS] + [("peak", a["memory"], b["memory"])]
    lines += [
        f"{name:12}{bytes_a / 2**30:8.3f}{bytes_b / 2**30:8.3f}{bytes_b / bytes_a:8.2f}"
        for name, bytes_a, bytes_b in rows
    ]
    for name, (size, shape) in (("A", a["kinds"]["largest_saved"]), ("B", b["kinds"]["largest_saved"])):
        lines.append(f"largest tensor that {name} saves: {shape}, {size / 2**30:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
