"""Environment of processes that compute on the CPU. OpenMP and the C library read it once, when a process starts.

OMP_WAIT_POLICY   idle threads of GNU OpenMP spin by default. Beside another busy process they take the core away from
                  the thread that they wait for. `passive` lets them sleep,
GOMP_SPINCOUNT    but not at once: to wake a thread takes as long as a small operator.
OMP_NUM_THREADS   several ranks on one machine divide its cores.
GLIBC_TUNABLES    glibc returns large tensors to the kernel and faults them in again, page by page, at the next step.
                  They are kept.

What the user has set is never changed. Nothing is set where there is a GPU, and with `MMCHAT_CPU_SETTINGS=off`.
docs/guides/cpu.md has figures.

    eval "$(python -m mmchat.cpu_settings 2)"     # the settings of two ranks, in the shell
"""

import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ALLOCATOR = "glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=34359738368"
"""Bytes: no tensor below 16 GiB is mapped by itself, and the heap shrinks when 32 GiB of it are free. Huge pages
(`glibc.malloc.hugetlb`) made training and the engine 7 to 9 % slower (lab log)."""
SPINS = "20000"
"""Rounds of GNU OpenMP's waiting loop, .2 ms on a Xeon. From 10,000 on a decode step was no faster (lab log)."""
CONTROL = "MMCHAT_CPU_SETTINGS"
"""`off` leaves the environment alone. Otherwise the id of the process that was restarted, set by mmchat."""
OFF = "off"
GPU_DEVICES = ("nvidia[0-9]*", "nvidiactl", "dxg", "kfd", "nvhost-gpu")
"""Files in /dev of CUDA, CUDA under WSL, ROCm and Jetson."""
VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def has_gpu(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> bool:
    """Whether torch may find a GPU, without importing torch.

    Args:
        environment: A variable of `VISIBLE_DEVICES` that is empty or -1 hides all GPUs.
        devices: The folder of device files.
    """
    if any(environment.get(name) in ("", "-1") for name in VISIBLE_DEVICES):
        return False
    return any(any(devices.glob(pattern)) for pattern in GPU_DEVICES) and not _torch_is_for_cpus()


def _torch_is_for_cpus() -> bool:
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def threads_of_each(processes: int) -> int:
    """Threads of each of several processes that divide the cores this one may use."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def missing_settings(processes: int = 1, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that processes on the CPU should have and the environment lacks.

    Args:
        processes: How many compute at the same time on this machine. One takes all cores, which is torch's default.
        environment: The environment that they would inherit.
    """
    if environment.get(CONTROL) == OFF or has_gpu(environment):
        return {}
    settings = {"OMP_WAIT_POLICY": "passive", "GLIBC_TUNABLES": ALLOCATOR}
    if "OMP_WAIT_POLICY" not in environment:  # it says how long threads spin, too
        settings["GOMP_SPINCOUNT"] = SPINS
    if processes > 1:
        settings["OMP_NUM_THREADS"] = str(threads_of_each(processes))
    return {name: value for name, value in settings.items() if name not in environment}


def restart_with_settings(processes: int = 1) -> None:
    """Replace this program by itself with the missing settings; return if none is missing.

    Call it before anything is read from stdin and before torch is imported. The process keeps its id, parent, working
    directory, open standard streams and ignored signals, so whatever waits for it or signals it sees no difference.

    Args:
        processes: As in `missing_settings`.
    """
    missing = missing_settings(processes)
    # A process with capabilities of its own loses GLIBC_TUNABLES at every start: it is restarted only once.
    if not missing or os.environ.get(CONTROL) == str(os.getpid()):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, command, {**os.environ, **missing, CONTROL: str(os.getpid())})


def main(arguments: list[str]) -> None:
    """Print `export` lines for a shell; the argument is the number of processes, 1 without it."""
    if len(arguments) > 1 or not all(word.isdecimal() and int(word) for word in arguments):
        sys.exit("error: expected the number of ranks on this machine, or nothing for 1")
    for name, value in missing_settings(*map(int, arguments)).items():
        print(f"export {name}={value}")


if __name__ == "__main__":
    main(sys.argv[1:])
