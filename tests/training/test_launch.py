"""The command that `mmchat train` builds: devices of the ranks, and the environment that they get."""

import base64
import json
import os

import pytest

from mmchat.cli import train
from mmchat.cpu_settings import ALLOCATOR
from mmchat.errors import UserError
from mmchat.training.distributed import launch
from mmchat.training.distributed.rank_watch import MEMORY
from tests.launching import write_config
from tests.training_fixtures import run_values, write_records


@pytest.fixture
def gpus(monkeypatch):
    """gpus(count): a machine that has so many."""

    def install(count):
        monkeypatch.setattr(launch, "has_gpu", lambda environment: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)

    return install


@pytest.mark.parametrize(
    ("count", "ranks", "visible", "devices"),
    [
        (0, None, None, ["0"]),
        (0, 2, None, ["0", "1"]),
        (4, None, None, ["0", "1", "2", "3"]),
        (4, 2, None, ["0", "1"]),
        (4, 2, "2,3", ["2", "3"]),
        (4, None, "2,3", ["2", "3"]),
        (4, 1, "3, 2", ["3"]),
        (2, 2, "GPU-8932f937,MIG-41a4e1b5", ["GPU-8932f937", "MIG-41a4e1b5"]),
    ],
)
def test_devices_of_the_ranks(gpus, count, ranks, visible, devices):
    gpus(count)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert launch.rank_devices(ranks, environment) == devices


def test_more_ranks_than_gpus_are_refused(gpus):
    gpus(4)
    with pytest.raises(UserError, match="--ranks 3: CUDA_VISIBLE_DEVICES=2,3 names 2 GPUs; every rank needs one"):
        launch.rank_devices(3, {"CUDA_VISIBLE_DEVICES": "2,3"})
    with pytest.raises(UserError, match="--ranks 5: torch sees 4 GPUs"):
        launch.rank_devices(5, {})


@pytest.fixture
def built(monkeypatch, tmp_path, assistant_dir):
    """built(*arguments) -> the launcher's command and environment that `mmchat train CONFIG *arguments` builds"""
    values = run_values(tmp_path, assistant_dir, write_records(tmp_path / "data", 4), steps=1)
    config = write_config(tmp_path / "run.yaml", **values)
    caught = []
    monkeypatch.setattr(
        train, "supervise", lambda command, environment, run_dir: caught.append((command, environment)) or 0
    )

    def build(*arguments):
        assert train.launch_main([str(config), *arguments]) == 0
        return caught.pop()

    return build


def test_visible_devices_reach_the_ranks(gpus, built, monkeypatch):
    """DeepSpeed's `launch` sets CUDA_VISIBLE_DEVICES of its ranks to the names in `world_info`."""
    gpus(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    command, _ = built("--ranks", "2", "--steps", "7")
    world = next(word for word in command if word.startswith("--world_info=")).partition("=")[2]
    assert json.loads(base64.urlsafe_b64decode(world)) == {"localhost": ["2", "3"]}
    assert command[command.index("--module") + 1 :] == ["mmchat.cli.train", command[-3], "--steps", "7"]


def test_ranks_on_a_cpu_get_its_settings(built, monkeypatch):
    own = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "GLIBC_TUNABLES", "MMCHAT_CPU_SETTINGS")
    for name in (*own, "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6))
    _, environment = built("--ranks", "2")
    assert (environment["OMP_WAIT_POLICY"], environment["OMP_NUM_THREADS"]) == ("passive", "3")
    assert (environment["GLIBC_TUNABLES"], environment["DS_ACCELERATOR"]) == (ALLOCATOR, "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    _, environment = built("--ranks", "2")
    assert (environment["OMP_WAIT_POLICY"], environment["OMP_NUM_THREADS"]) == ("active", "5")


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [({}, 1), ({"LOCAL_SIZE": "2"}, 2), ({"LOCAL_WORLD_SIZE": "4"}, 4), ({"SLURM_NTASKS_PER_NODE": "8"}, 8)],
)
def test_ranks_of_any_launcher_know_their_number(monkeypatch, environment, ranks):
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert train.ranks_on_this_machine() == ranks


@pytest.mark.parametrize(
    ("launched", "status", "message"),
    [
        (0, 0, ""),
        (2, 2, ""),  # the rank has named the mistake
        (130, 130, ""),
        (143, 143, ""),
        (1, 1, "error: a rank failed with exit status 1; the reason is above\n"),
        (256 - 9, 137, f"error: a rank was killed by SIGKILL; {MEMORY}. Start it again\n"),
        (256 - 11, 139, "error: a rank was killed by SIGSEGV. Start it again\n"),
        (-9, 137, "error: DeepSpeed's launcher was killed by SIGKILL, its ranks have ended. Start it again\n"),
    ],
)
def test_an_end_that_no_rank_reports_is_reported(capsys, tmp_path, launched, status, message):
    """DeepSpeed's launcher passes the status of a rank on; Python makes 247 of -9."""
    assert train.exit_status(launched, tmp_path) == status
    assert capsys.readouterr().err == message
    (tmp_path / "config.yaml").touch()
    train.exit_status(launched, tmp_path)
    resume = f"Resume with: mmchat train {tmp_path}/config.yaml --resume, and --ranks as before"
    assert capsys.readouterr().err == message.replace("Start it again", resume)
