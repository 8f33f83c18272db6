"""`deepspeed scripts/train.py CONFIG` and `mmchat train CONFIG`."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mmchat.cli.train_help import help_text, short_help_text
from mmchat.command_line.arguments import OneLineParser, positive
from mmchat.command_line.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, reporting
from mmchat.command_line.quick_imports import quick_imports
from mmchat.command_line.quiet import quiet_libraries
from mmchat.cpu_settings import restart_with_settings
from mmchat.errors import UserError
from mmchat.training.distributed.siblings import ranks_on_this_machine

if TYPE_CHECKING:
    import psutil

    from mmchat.training.config import RunConfig

REPORTED_BY_RANKS = (0, EXIT_USER_ERROR, EXIT_INTERRUPTED, 128 + signal.SIGTERM)
OLD_LAUNCHER_RANK = ("--local_rank=", "--local-rank=")
"""Some launchers insert these before CONFIG; the rank comes from the environment."""


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


def train_main(arguments: list[str] | None = None, last_step: int | None = None) -> None:
    """One rank of a run; what the launcher starts. Without `arguments` this process is a rank and nothing else.

    Args:
        last_step: End after this step, without a checkpoint or a model (`mmchat rerun`).
    """
    if arguments is None:
        restart_with_settings(ranks_on_this_machine())  # those of `mmchat train` have the settings already
        arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(help_text() if "--help" in arguments else short_help_text())
        return
    from mmchat.training.distributed.rank_watch import RankWatch
    from mmchat.training.distributed.signals import StopSignals

    with RankWatch() as watch, reporting(rank=int(os.environ.get("RANK", "0"))):
        config = read_config(arguments)
        watch.run_dir = config.run_dir
        quiet_libraries()
        with quick_imports():
            from mmchat.training.distributed import collectives, process_group
            from mmchat.training.trainer import run

        process_group.start()
        status = run(config, StopSignals(watch.launchers), last_step)
        collectives.barrier()  # rank 0 may still have been closing its trackers
        watch.leave()
        process_group.stop()
        sys.exit(status)


def launch_main(arguments: list[str]) -> int:
    """`mmchat train`: all ranks of this machine, on every visible GPU or on `--ranks N`.

    What can be wrong without looking at tensors is found here, before any rank starts.
    """
    with reporting():
        if not arguments or {"-h", "--help"} & set(arguments):
            print(help_text() if "--help" in arguments else short_help_text())
            return 0
        ranks, arguments = take_ranks(arguments)
        config = read_config(arguments)
        from mmchat.training.distributed.launch import launch_command, launch_environment, rank_devices
        from mmchat.training.preflight import check_run

        devices = rank_devices(ranks)
        check_run(config, len(devices))
        command, environment = launch_command(devices, __name__, arguments), launch_environment(len(devices))
        return supervise(command, environment, config.run_dir)


def take_ranks(arguments: list[str]) -> tuple[int | None, list[str]]:
    """The number of `--ranks N`, None without it, and the other arguments."""
    parser = OneLineParser(prog="mmchat train", add_help=False, allow_abbrev=False)
    parser.add_argument("--ranks", type=positive)
    found, others = parser.parse_known_args(arguments)
    return found.ranks, others


def supervise(command: list[str], environment: dict[str, str], run_dir: Path) -> int:
    """Run DeepSpeed's launcher where the terminal's Ctrl-C does not reach it, and pass signals to the ranks only.

    The launcher would react to a signal by killing the ranks before they have saved, or by losing track of them
    (`training.distributed.signals`). A run whose every rank was killed cannot say so; this does.
    """
    import psutil

    from mmchat.training.distributed.rank_watch import REASON_PRINTED
    from mmchat.training.distributed.signals import LAUNCHED_BY, SIGNALS

    environment = {**environment, LAUNCHED_BY: str(os.getpid())}
    process = subprocess.Popen(command, start_new_session=True, env=environment)

    def pass_on(number: int, _: FrameType | None) -> None:
        with suppress(psutil.NoSuchProcess):
            ranks = psutil.Process(process.pid).children()
            for rank in ranks:
                rank.send_signal(number)
            if not ranks:
                os.killpg(process.pid, signal.SIGTERM)

    reasons: list[int] = []
    handlers = dict.fromkeys(SIGNALS, pass_on) | dict.fromkeys(REASON_PRINTED, lambda number, _: reasons.append(number))
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    status = process.wait()
    if status < 0:  # killed: ranks outlive their launcher until they have finished the step and saved
        psutil.wait_procs(launched_by_this())
    for number, handler in before.items():
        signal.signal(number, handler)
    if reasons:
        return REASON_PRINTED[signal.Signals(reasons[0])]
    return exit_status(status, run_dir)


def launched_by_this() -> list["psutil.Process"]:
    """The ranks of this `mmchat train` and their data workers, also those that have lost their launcher."""
    import psutil

    from mmchat.training.distributed.signals import LAUNCHED_BY

    found = psutil.process_iter(["environ"])
    return [process for process in found if (process.info["environ"] or {}).get(LAUNCHED_BY) == str(os.getpid())]


def exit_status(status: int, run_dir: Path) -> int:
    """The exit status of `mmchat train`, from that of DeepSpeed's launcher, which passes on that of a failed rank.

    What a rank reports itself has a status of its own: a mistake, Ctrl-C, SIGTERM. Any other end is reported here.
    """
    from mmchat.training.distributed.rank_watch import MEMORY, what_next

    step = what_next(run_dir, f"mmchat train {run_dir / 'config.yaml'} --resume, and --ranks as before")
    if status < 0:
        name = signal.Signals(-status).name
        print(f"error: DeepSpeed's launcher was killed by {name}, its ranks have ended. {step}", file=sys.stderr)
        return 128 - status
    if status > 256 - signal.NSIG:  # what is left of the negative number of the signal
        name = signal.Signals(256 - status).name
        because = f"; {MEMORY}" if name == "SIGKILL" else ""
        print(f"error: a rank was killed by {name}{because}. {step}", file=sys.stderr)
        return 128 + 256 - status
    if status not in REPORTED_BY_RANKS:
        print(f"error: a rank failed with exit status {status}; the reason is above", file=sys.stderr)
    return status


if __name__ == "__main__":
    train_main()
