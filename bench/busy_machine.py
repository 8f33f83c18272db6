"""Measures what the settings of `mmchat.cpu_settings` buy, on an idle machine and beside busy processes.

One command is run with the settings and without them (MMCHAT_CPU_SETTINGS=off), each time as a process of its own,
beside 0, 1 and 2 loops that never sleep. All cases alternate within a round.

    python bench/busy_machine.py train configs/quickstart/sft.yaml --ranks 2 --steps 60
    python bench/busy_machine.py caption runs/quickstart/model data/quickstart/heldout
    python bench/busy_machine.py eval runs/quickstart/model data/quickstart/heldout.json
    python bench/busy_machine.py chat runs/quickstart/model "How many digits are there?" --image IMAGE

`train` and `caption` are measured from the tenth step or the first caption on, `eval` and `chat` from start to end. The
last column is the work for each second of CPU time, which shows how much of it was spent on waiting.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil

from mmchat.cpu_settings import CONTROL, OFF
from mmchat.files import split_complete_lines, write_json

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "GLIBC_TUNABLES", CONTROL)
BUSY = "while True: pass"
WARMUP_STEPS = 10
POLL = 0.1
"""Seconds between two looks at progress and CPU time."""


@dataclass(frozen=True)
class Work:
    """Work done so far, and what it took.

    amount: tokens of training steps, captions, or whole commands. seconds: wall clock. cpu: of all processes.
    """

    amount: float
    seconds: float
    cpu: float

    def __sub__(self, before: "Work") -> "Work":
        return Work(self.amount - before.amount, self.seconds - before.seconds, self.cpu - before.cpu)

    @property
    def rates(self) -> tuple[float, float]:
        """Per second, and per second of CPU time."""
        return self.amount / self.seconds, self.amount / self.cpu


Progress = Callable[[], float]
"""The amount of work that a running command has recorded; 0 during its start-up."""


def trained_tokens(run_dir: Path) -> float:
    """Tokens of the steps after the warm-up."""
    log = run_dir / "metrics.jsonl"
    lines = split_complete_lines(log)[0] if log.exists() else []
    rows = [row for row in map(json.loads, lines) if "tokens" in row]
    return sum(row["tokens"] for row in rows[WARMUP_STEPS:])


def written_lines(path: Path) -> float:
    return float(len(split_complete_lines(path)[0])) if path.exists() else 0.0


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process and its descendants, ended ones included once their parent has waited for them."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def measure(command: list[str], environment: dict[str, str], progress: Progress | None = None) -> Work:
    """Run a command to its end.

    Args:
        command: What to run.
        environment: Its environment.
        progress: Measure from the first work recorded to the last; None: the whole command, as an amount of 1.
    """
    started = time.monotonic()
    process = psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    looks: list[Work] = []
    while process.poll() is None:
        looks.append(_look(process, started, progress))
        time.sleep(POLL)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{process.stderr.read()}")
    if progress is None:
        last = looks[-1]
        return Work(1.0, time.monotonic() - started, last.cpu)
    begun = [look for look in looks if look.amount]
    if len({look.amount for look in begun}) < 2:
        sys.exit("the command ended before two amounts of work were seen; give it more to do")
    last = next(look for look in begun if look.amount == begun[-1].amount)
    return last - begun[0]


def _look(process: psutil.Popen, started: float, progress: Progress | None) -> Work:
    try:
        cpu = cpu_seconds(process)
    except psutil.NoSuchProcess:
        cpu = 0.0
    return Work(progress() if progress else 0.0, time.monotonic() - started, cpu)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that never sleep, at the priority of this one."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def environment_of(variant: str) -> dict[str, str]:
    """The environment without settings of its own; `bare` leaves it so."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return inherited | ({CONTROL: OFF} if variant == "bare" else {})


def run_case(words: list[str], variant: str) -> Work:
    command = [sys.executable, "-m", "mmchat.cli.main", *words]
    with tempfile.TemporaryDirectory() as folder:
        progress: Progress | None = None
        if words[0] == "train":
            run_dir = Path(folder) / "run"
            command += ["--run_dir", str(run_dir), "--checkpoint.every", "1000000"]
            progress = lambda: trained_tokens(run_dir)  # noqa: E731
        elif words[0] == "caption":
            out = Path(folder) / "captions.jsonl"
            command += ["--out", str(out)]
            progress = lambda: written_lines(out)  # noqa: E731
        return measure(command, environment_of(variant), progress)


def table(cases: dict[tuple[str, int], list[Work]]) -> list[str]:
    """Medians; shares are of the same variant on the calm machine."""
    rates = {case: [median(column) for column in zip(*(work.rates for work in works), strict=True)]
             for case, works in cases.items()}  # fmt: skip
    lines = [
        "| settings | busy loops | per second | share of calm | per CPU-second | share of calm |",
        "|---" * 6 + "|",
    ]
    for (variant, loops), (speed, efficiency) in rates.items():
        calm = rates[variant, 0]
        shares = speed / calm[0], efficiency / calm[1]
        lines.append(f"| {variant} | {loops} | {speed:,.3g} | {shares[0]:.0%} | {efficiency:,.3g} | {shares[1]:.0%} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loops", type=int, nargs="+", default=[0, 1, 2], help="numbers of busy loops; 0 is needed")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/busy_machine.json"))
    options, words = parser.parse_known_args()
    if not words or words[0] not in ("train", "caption", "eval", "chat"):
        parser.error("expected train, caption, eval or chat with its arguments")
    cases: dict[tuple[str, int], list[Work]] = {(v, n): [] for n in options.loops for v in ("bare", "set")}
    for number in range(1, options.rounds + 1):
        for (variant, loops), works in cases.items():
            with busy(loops):
                works.append(run_case(words, variant))
            print(f"round {number}: {variant}, {loops} loops: {works[-1]}", file=sys.stderr, flush=True)
    measured = [{"settings": v, "loops": n, "works": [asdict(w) for w in works]} for (v, n), works in cases.items()]
    write_json(options.out, {"command": words, "load": os.getloadavg(), "cores": os.cpu_count(), "cases": measured})
    print("\n".join(table(cases)))


if __name__ == "__main__":
    main()
