"""`deepspeed scripts/train.py CONFIG` and `mmchat train CONFIG`."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from mmchat.command_line.errors import reporting
from mmchat.command_line.quiet import quiet_libraries
from mmchat.errors import UserError
from mmchat.settings import describe, load_settings

USAGE = """usage: deepspeed scripts/train.py CONFIG [--key value ...]
       mmchat train CONFIG [--ranks N] [--key value ...]

Train as a YAML file says; any of its keys can be overridden, nested ones with a dot.

  example: deepspeed --num_accelerators 1 scripts/train.py configs/quickstart/sft.yaml --steps 20 --run_dir runs/try

To stop: Ctrl-C, or SIGTERM to the launcher or to a rank. All ranks finish the step, save a checkpoint, say how to go
on (--resume) and exit with 130 (Ctrl-C) or 143 (SIGTERM, or their launcher died); a second Ctrl-C ends at once.
`mmchat train` and `deepspeed` pass the status on, `torchrun` makes 1 of it. Other statuses: 0 done; 2 a mistake in the
config or data, a full disk, or a step that stability.on_nan or on_spike stops at.

keys (type, default):
"""


def help_text() -> str:
    from mmchat.training.config import RunConfig

    rows = [(".".join(path), *rest) for path, *rest in describe(RunConfig)]
    width = max(len(key) for key, *_ in rows)
    lines = []
    for key, kind, default, meaning in rows:
        kind = kind.replace("pathlib.", "")
        lines.append(f"  --{key:{width}} {meaning}  [{kind}; {default}]")
    return USAGE + "\n".join(lines)


def split_arguments(words: list[str]) -> tuple[Path | None, list[str]]:
    """CONFIG and the rest; launchers put `--local_rank=N` in front of CONFIG."""
    for index, word in enumerate(words):
        if not word.startswith("-"):
            return Path(word), words[:index] + words[index + 1 :]
        if not word.startswith(("--local_rank=", "--local-rank=")):
            break
    return None, words


def train_main(words: list[str] | None = None) -> None:
    """One rank of a run; what the launcher starts."""
    words = sys.argv[1:] if words is None else words
    with reporting(rank=int(os.environ.get("RANK", "0"))):
        if {"-h", "--help"} & set(words):
            print(help_text())
            return
        path, overrides = split_arguments(words)
        if path is None:
            raise UserError("expected CONFIG first, a YAML file such as configs/quickstart/sft.yaml (see --help)")
        quiet_libraries()
        from mmchat.training.config import RunConfig

        config = load_settings(RunConfig, path, overrides)

        from mmchat.training.distributed import collectives
        from mmchat.training.trainer import run

        collectives.start()
        try:
            status = run(config)
        finally:
            collectives.stop()
        sys.exit(status)


def launch_main(words: list[str]) -> int:
    """`mmchat train`: the same through DeepSpeed's launcher, on the devices there are, or on `--ranks N`."""
    with reporting():
        if not words or {"-h", "--help"} & set(words):
            print(help_text())
            return 0
        words = list(words)
        chosen = []
        if "--ranks" in words:
            at = words.index("--ranks")
            if at + 1 >= len(words) or not words[at + 1].isdigit():
                raise UserError("--ranks needs a number")
            chosen = ["--num_accelerators", words[at + 1]]
            del words[at : at + 2]
        import torch

        from mmchat.training.distributed.collectives import free_port
        from mmchat.training.distributed.signals import RUNNER

        if not chosen and not torch.cuda.is_available():
            chosen = ["--num_accelerators", "1"]
        launcher = [sys.executable, "-m", RUNNER, "--quiet", *chosen]
        launcher += ["--master_port", str(free_port()), "--module", "mmchat.cli.train"]
        return supervise([*launcher, *words])


def supervise(command: list[str]) -> int:
    """Run DeepSpeed's launcher where the terminal's Ctrl-C does not reach it, and hand signals to the ranks alone.

    Told itself, the launcher would kill the ranks before they have saved, or forget them
    (`training.distributed.signals`).
    """
    import psutil

    from mmchat.training.distributed.signals import LAUNCHED_BY, SIGNALS

    environment = {**os.environ, LAUNCHED_BY: str(os.getpid())}
    process = subprocess.Popen(command, start_new_session=True, env=environment)

    def hand_on(number: int, _: FrameType | None) -> None:
        with suppress(psutil.NoSuchProcess):
            ranks = [rank for launch in psutil.Process(process.pid).children() for rank in launch.children()]
            for rank in ranks:
                rank.send_signal(number)
            if not ranks:
                os.killpg(process.pid, signal.SIGTERM)

    before = {number: signal.signal(number, hand_on) for number in SIGNALS}
    status = process.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    train_main()
