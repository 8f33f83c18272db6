"""Several nodes, all of them this machine: each way of launching makes one process group of two launchers' ranks, which
train as two ranks of one node do. `tests/cluster` stands in for the programs of a cluster."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mmchat.training.distributed.launch import free_port
from tests.launching import ROOT, launch, launch_environment, steps, wait_for_step, wait_until_gone, write_config
from tests.training_fixtures import run_values, write_records

BIN = Path(sys.executable).parent
CLUSTER = ROOT / "tests" / "cluster"
TRAIN = str(ROOT / "scripts" / "train.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("data"), 24)


@pytest.fixture(scope="module")
def on_one_node(tmp_path_factory, data, assistant_dir):
    """The steps of the same run with two ranks on one node."""
    folder = tmp_path_factory.mktemp("one-node")
    config = write_config(folder / "run.yaml", **run_values(folder, assistant_dir, data))
    result = launch(config, ranks=2)
    assert result.returncode == 0, result.stdout
    return steps(folder / "run")


@pytest.fixture
def config(tmp_path, data, assistant_dir):
    return write_config(tmp_path / "run.yaml", **run_values(tmp_path, assistant_dir, data))


@pytest.fixture
def long_config(tmp_path, data, assistant_dir):
    """More steps than any test waits for."""
    return write_config(tmp_path / "run.yaml", **run_values(tmp_path, assistant_dir, data, steps=3000, workers=1))


def start_node(command: list, log: Path, **environment: str) -> subprocess.Popen:
    path = {"PATH": f"{CLUSTER}:{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with log.open("a") as output:
        return subprocess.Popen(
            list(map(str, command)),
            env=launch_environment(**path, **environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def start_torchrun(config: Path, log: Path) -> list[subprocess.Popen]:
    """One launcher a node, started by hand."""
    port = str(free_port())
    command = [BIN / "torchrun", "--nnodes", "2", "--nproc_per_node", "1"]
    command += ["--master_addr", "127.0.0.1", "--master_port", port]
    return [start_node([*command, "--node_rank", node, TRAIN, config], log) for node in (0, 1)]


def with_hostfile(config: Path) -> list:
    hostfile = config.with_name("hostfile")
    hostfile.write_text("alpha slots=1\nbeta slots=1\n")
    return [BIN / "deepspeed", "--hostfile", hostfile, "--master_addr", "127.0.0.1", "--master_port", free_port()]


def start_hostfile(config: Path, log: Path) -> list[subprocess.Popen]:
    """`deepspeed` starts a launcher on each node through pdsh."""
    return [start_node([*with_hostfile(config), TRAIN, config], log)]


def start_without_ssh(config: Path, log: Path) -> list[subprocess.Popen]:
    """`deepspeed` by hand on each node."""
    command = [*with_hostfile(config), "--no_ssh", "--node_rank"]
    return [start_node([*command, node, TRAIN, config], log) for node in (0, 1)]


def start_slurm(config: Path, log: Path) -> list[subprocess.Popen]:
    """The batch script with what sbatch tells it."""
    told = {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "MASTER_PORT": str(free_port()),
    }
    return [start_node(["bash", ROOT / "scripts" / "train.sbatch", config], log, **told)]


pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "start",
    [start_slurm, start_hostfile, start_without_ssh, start_torchrun],
)
def test_two_nodes_train_as_two_ranks_do(tmp_path, config, on_one_node, start):
    log = tmp_path / "log"
    launchers = start(config, log)
    assert [launcher.wait(timeout=120) for launcher in launchers] == [0] * len(launchers), log.read_text()
    wait_until_gone(tmp_path)
    run = tmp_path / "run"
    assert json.loads((run / "environment.json").read_text())["ranks"] == 2
    assert steps(run) == on_one_node
    assert (run / "model" / "config.json").exists()


def test_the_time_limit_of_slurm_saves_and_requeues(tmp_path, long_config):
    """Slurm signals every process of a step, and not the script: the ranks here, below the shell and srun."""
    log = tmp_path / "log"
    (script,) = start_slurm(long_config, log)
    wait_for_step(script, tmp_path / "run", 5)
    (srun,) = psutil.Process(script.pid).children()
    for rank in srun.children():
        for process in (rank, *rank.children(recursive=True)):
            process.send_signal(signal.SIGTERM)
    assert script.wait(timeout=60) == 143, log.read_text()
    wait_until_gone(tmp_path)
    check_saved(tmp_path, log)
    assert "scontrol requeue 1" in log.read_text()


@pytest.mark.parametrize("node", [0, 1])
def test_sigterm_to_the_torchrun_of_one_node_stops_both(tmp_path, long_config, node):
    log = tmp_path / "log"
    launchers = start_torchrun(long_config, log)
    wait_for_step(launchers[0], tmp_path / "run", 5)
    launchers[node].send_signal(signal.SIGTERM)
    assert [launcher.wait(timeout=60) for launcher in launchers] == [1, 1], log.read_text()
    wait_until_gone(tmp_path)
    check_saved(tmp_path, log)


def test_sigterm_to_a_rank_stops_all_nodes_of_a_hostfile(tmp_path, long_config):
    """`deepspeed` itself gets no signal: it would end every DeepSpeed run of this user on these nodes, by name."""
    log = tmp_path / "log"
    (runner,) = start_hostfile(long_config, log)
    wait_for_step(runner, tmp_path / "run", 5)
    below = psutil.Process(runner.pid).children(recursive=True)
    launchers = [process for process in below if process.cmdline()[1:4] == ["-u", "-m", "deepspeed.launcher.launch"]]
    (rank,) = launchers[1].children()
    rank.send_signal(signal.SIGTERM)
    assert runner.wait(timeout=60) == 143, log.read_text()
    wait_until_gone(tmp_path)
    check_saved(tmp_path, log)


def check_saved(folder: Path, log: Path) -> None:
    stopped = len(steps(folder / "run"))
    assert f"terminated: stopped after step {stopped} of 3000" in log.read_text()
    assert (folder / "run" / "checkpoints" / "latest").read_text() == f"step-{stopped:08d}"
