"""Kills runs at random moments, resumes them, and compares what they leave with the uninterrupted run.

    python -m tests.invariants.killed_runs --kills 20 --stages 0 1 2 3

Each kill is a SIGKILL to a rank, a data worker, the launcher or all processes of `mmchat train --ranks 2`, at a random
moment between the start of the launcher and the end of the run. Whatever is left must end within 30 s, with one
sentence and no traceback; without their launcher, ranks save first. The run is then resumed, and the next kill comes,
until it is complete: then all ids must have been used once, in the order of the uninterrupted run, and the weights must
equal its weights bit for bit.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from mmchat.model.assembly import assemble
from mmchat.model.directory import save_assistant
from mmchat.vision import TowerConfig, build_tower
from tests.conftest import CLIP_28, DATA, LANGUAGE, TOKENIZER_OF
from tests.launching import launch_environment, processes_of, steps, write_config
from tests.training_fixtures import run_values, write_records

STEPS = 16
LIMIT = 30.0
"""Seconds in which everything must have ended after a kill."""
LIMIT_TO_SAVE = 120.0
"""The same after the launcher was killed: the ranks finish the step and save."""
VICTIMS = ("rank", "worker", "launcher", "all")
ERROR, STOPPED = re.compile(r"^error: .*$", re.MULTILINE), "terminated: stopped after step "
FORBIDDEN = ("Traceback", "gloo", "terminate called", "leaked semaphore")


@dataclass(frozen=True)
class Kill:
    """What was killed, after how many seconds, and how it ended: seconds until all was gone, status, what was said."""

    victim: str
    after: float
    seconds: float
    status: int
    said: str


def write_model(folder: Path) -> Path:
    """A tiny assistant with dropout, so that resuming must restore the random state, too."""
    torch.manual_seed(0)
    tower = build_tower(TowerConfig(family="clip_vit", backbone=CLIP_28, layer=-2))
    language = folder / "language.json"
    language.write_text(json.dumps({"model_type": "llama", **LANGUAGE["llama"], "attention_dropout": 0.2}))
    tokenizer = str(DATA / "tokenizers" / TOKENIZER_OF["llama"])
    save_assistant(*assemble(str(language), [tower], "mlp2x_gelu", "vicuna_v1", tokenizer=tokenizer), folder / "model")
    return folder / "model"


def write_run(folder: Path, model: Path, stage: int) -> Path:
    data = write_records(folder / "data", 24)
    values = run_values(folder, model, data, steps=STEPS, workers=1, micro_batch_size=2)
    values |= {"distributed": {"zero_stage": stage}, "checkpoint": {"every": 2, "keep": 2}}
    return write_config(folder / "run.yaml", **values)


def start(config: Path, run_dir: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "mmchat.cli.main", "train", str(config), "--ranks", "2"]
    command += ["--run_dir", str(run_dir), "--resume"]
    with log.open("w") as output:
        return subprocess.Popen(command, env=launch_environment(), stdout=output, stderr=subprocess.STDOUT)


def tree(process: subprocess.Popen) -> dict[str, list[psutil.Process]]:
    """The processes of a run by their kind."""
    found: dict[str, list[psutil.Process]] = {"launcher": [psutil.Process(process.pid)], "rank": [], "worker": []}
    for child in found["launcher"][0].children(recursive=True):
        try:
            is_rank, below_a_rank = "RANK" in child.environ(), "RANK" in child.parent().environ()
        except (psutil.Error, AttributeError):
            continue
        found["worker" if below_a_rank else "rank" if is_rank else "launcher"].append(child)
    return found


def kill(process: subprocess.Popen, victim: str, rng: random.Random) -> str:
    """Kill one process of that kind, or one of the next kind if there is none yet; returns whom."""
    processes = tree(process)
    if victim == "all":
        for one in (one for kind in processes.values() for one in kind):
            send(one)
        return "all"
    kind = next(kind for kind in (victim, "rank", "launcher") if processes[kind])
    send(rng.choice(processes[kind]))
    return kind


def send(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)


def run_and_kill(config: Path, run_dir: Path, victim: str, after: float, rng: random.Random) -> Kill | None:
    """One launch with one kill; None if the run was complete before."""
    log = run_dir.with_suffix(".log")
    process = start(config, run_dir, log)
    try:
        status = process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        pass
    else:
        assert status == 0, log.read_text()
        return None
    victim, begin = kill(process, victim, rng), time.monotonic()
    limit = LIMIT_TO_SAVE if victim == "launcher" else LIMIT
    status = process.wait(timeout=limit)
    while left := processes_of(run_dir):
        assert time.monotonic() - begin < limit, f"{victim} killed: {left} still run\n{log.read_text()}"
        time.sleep(0.05)
    kill_of = Kill(victim, after, time.monotonic() - begin, status, log.read_text())
    check(kill_of)
    return kill_of


def check(done: Kill) -> None:
    """One sentence, no traceback, and a status that is not 0, unless the run was complete already."""
    errors, complete = ERROR.findall(done.said), "\ndone\n" in done.said
    said = len(errors) == 1 or (not errors and STOPPED in done.said)
    assert done.victim == "all" or complete or said, f"{done.victim}: {errors}\n{done.said}"
    assert not any(word in done.said for word in FORBIDDEN), f"{done.victim}\n{done.said}"
    assert complete or done.status != 0, done.said


def compare(run_dir: Path, whole: Path) -> None:
    assert steps(run_dir) == steps(whole)
    found, expected = (load_file(folder / "model" / "model.safetensors") for folder in (run_dir, whole))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def kill_stage(folder: Path, stage: int, kills: int, seed: int) -> list[Kill]:
    """So many kills at one ZeRO stage, over as many runs as they need; every run is completed and compared."""
    rng = random.Random(f"{seed} {stage}")
    folder.mkdir(parents=True)
    config, done, runs = write_run(folder, write_model(folder), stage), [], 0
    begin = time.monotonic()
    process = start(config, folder / "whole", folder / "whole.log")
    assert process.wait() == 0, (folder / "whole.log").read_text()
    duration = time.monotonic() - begin
    while len(done) < kills:
        runs += 1
        run_dir = folder / f"run{runs}"
        while len(done) < kills:
            victim = VICTIMS[len(done) % len(VICTIMS)]
            killed = run_and_kill(config, run_dir, victim, rng.uniform(0.05, 1) * duration, rng)
            if killed is None:
                break
            done.append(killed)
            sentence = next(iter(ERROR.findall(killed.said)), "")[:90]
            print(
                f"ZeRO {stage} kill {len(done)}: {killed.victim} after {killed.after:.1f} s; all ended in "
                f"{killed.seconds:.1f} s, status {killed.status} {sentence}",
                flush=True,
            )
        assert start(config, run_dir, run_dir.with_suffix(".log")).wait() == 0, run_dir.with_suffix(".log").read_text()
        compare(run_dir, folder / "whole")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each stage")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    begin = time.monotonic()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for stage in arguments.stages:
            done = kill_stage(Path(folder) / f"zero{stage}", stage, arguments.kills, arguments.seed)
            slowest = max(one.seconds for one in done)
            print(f"ZeRO {stage}: {len(done)} kills, weights bitwise equal, slowest end {slowest:.1f} s", flush=True)
    print(f"{time.monotonic() - begin:,.0f} s in all")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    main()
