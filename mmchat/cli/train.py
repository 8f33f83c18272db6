"""`deepspeed scripts/train.py CONFIG` and `mmchat train CONFIG`."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mmchat.command_line.errors import reporting
from mmchat.command_line.quiet import quiet_libraries
from mmchat.command_line.settings_help import settings_help
from mmchat.errors import UserError

if TYPE_CHECKING:
    from mmchat.training.config import RunConfig

USAGE = """usage: mmchat train CONFIG [--ranks N] [--key value ...]
       deepspeed scripts/train.py CONFIG [--key value ...]

Train as a YAML file says. Any of its keys can be overridden, nested ones with a dot.

  example: mmchat train configs/quickstart/sft.yaml --ranks 1 --steps 20 --run_dir runs/try

To stop: Ctrl-C, or SIGTERM to the launcher or to a rank. All ranks finish the step, save a checkpoint, say how to
resume (--resume), and exit with 130 (Ctrl-C) or 143 (SIGTERM, or their launcher died). A second Ctrl-C ends at once.
`mmchat train` and `deepspeed` return that exit status, `torchrun` returns 1. Other exit statuses: 0 done; 2 a mistake
in the config or data, a full disk, or a step at which monitoring.stability stops the run.

Keys of CONFIG, each with [type; default]:

"""
OLD_LAUNCHER_RANK = ("--local_rank=", "--local-rank=")
"""Some launchers insert these before CONFIG; the rank comes from the environment."""


def help_text() -> str:
    """What `mmchat train --help` prints."""
    from mmchat.training.config import RunConfig

    return USAGE + settings_help(RunConfig)


def split_arguments(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """CONFIG and the rest."""
    for index, argument in enumerate(arguments):
        if not argument.startswith("-"):
            return Path(argument), arguments[:index] + arguments[index + 1 :]
        if not argument.startswith(OLD_LAUNCHER_RANK):
            break
    return None, arguments


def read_config(arguments: list[str]) -> "RunConfig":
    """The config that the arguments name, overridden and validated, without importing torch.

    Raises:
        UserError: no CONFIG, or a mistake in it.
    """
    from mmchat.training.config import load_run_config

    path, overrides = split_arguments(arguments)
    if path is None:
        raise UserError("expected CONFIG first, a YAML file such as configs/quickstart/sft.yaml (see --help)")
    return load_run_config(path, overrides)


def train_main(arguments: list[str] | None = None) -> None:
    """One rank of a run; what the launcher starts."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with reporting(rank=int(os.environ.get("RANK", "0"))):
        if {"-h", "--help"} & set(arguments):
            print(help_text())
            return
        config = read_config(arguments)
        quiet_libraries()
        from mmchat.training.distributed import process_group
        from mmchat.training.trainer import run

        process_group.start()
        try:
            status = run(config)
        finally:
            process_group.stop()
        sys.exit(status)


def launch_main(arguments: list[str]) -> int:
    """`mmchat train`: DeepSpeed's launcher with `train_main`, on all devices or on `--ranks N`.

    The config is validated first, so that a mistake in it starts no launcher.
    """
    with reporting():
        if not arguments or {"-h", "--help"} & set(arguments):
            print(help_text())
            return 0
        arguments = list(arguments)
        devices = []
        if "--ranks" in arguments:
            at = arguments.index("--ranks")
            if at + 1 >= len(arguments) or not arguments[at + 1].isdigit():
                raise UserError("--ranks needs a number")
            devices = ["--num_accelerators", arguments[at + 1]]
            del arguments[at : at + 2]
        read_config(arguments)
        import torch

        from mmchat.training.distributed.process_group import free_port
        from mmchat.training.distributed.signals import RUNNER

        if not devices and not torch.cuda.is_available():
            devices = ["--num_accelerators", "1"]
        launcher = [sys.executable, "-m", RUNNER, "--quiet", *devices]
        launcher += ["--master_port", str(free_port()), "--module", "mmchat.cli.train"]
        return supervise([*launcher, *arguments])


def supervise(command: list[str]) -> int:
    """Run DeepSpeed's launcher where the terminal's Ctrl-C does not reach it, and pass signals to the ranks only.

    The launcher would react to a signal by killing the ranks before they have saved, or by losing track of them
    (`training.distributed.signals`).
    """
    import psutil

    from mmchat.training.distributed.signals import LAUNCHED_BY, SIGNALS

    environment = {**os.environ, LAUNCHED_BY: str(os.getpid())}
    process = subprocess.Popen(command, start_new_session=True, env=environment)

    def pass_on(number: int, _: FrameType | None) -> None:
        with suppress(psutil.NoSuchProcess):
            ranks = [rank for launch in psutil.Process(process.pid).children() for rank in launch.children()]
            for rank in ranks:
                rank.send_signal(number)
            if not ranks:
                os.killpg(process.pid, signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    status = process.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    train_main()
