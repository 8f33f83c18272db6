"""The death of a data worker, a rank or the launcher ends all of them, with one sentence. Ranks here are small programs
without torch, except in the tests of real runs."""

import os
import shlex
import signal
import subprocess
import sys
import time
from threading import Timer

import psutil
import pytest
import torch

from mmchat.training.distributed import signals
from mmchat.training.distributed.data_workers import describe_dead_worker
from mmchat.training.distributed.siblings import ranks_on_this_machine, resume_command
from mmchat.training.distributed.signals import LAUNCH, LAUNCHED_BY
from tests.launching import launch_environment, processes_of

LAUNCHER = """
import os, subprocess, sys
ranks = int(sys.argv[1])
processes = [subprocess.Popen([sys.executable, "-c", sys.argv[2]], env=os.environ | {"RANK": str(rank)})
             for rank in range(ranks)]
print([process.pid for process in processes], flush=True)
sys.exit(max(abs(process.wait()) for process in processes))
"""
RANK = """
import ctypes, os, sys, time
from mmchat.training.distributed import rank_watch
from mmchat.training.distributed.rank_watch import RankWatch
rank_watch.POLL, rank_watch.CONFIRM, rank_watch.TURN = 0.1, 0.2, 0.4
rank = int(os.environ["RANK"])
def wait_in_c():
    "As in a collective: for ever, and no handler of Python runs."
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
with RankWatch() as watch:
    print("rank", rank, "runs", flush=True)
"""


class Launch:
    """A launcher with ranks that execute `body` inside the watch."""

    def __init__(self, body, ranks=2, **environment):
        code = RANK + "".join(f"    {line}\n" for line in body.splitlines())
        told = {"MASTER_PORT": "1", "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks), **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", LAUNCHER, str(ranks), code],
            env=launch_environment(**told),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines = []
        [pids] = self.wait_for("[", 1)
        self.ranks = [psutil.Process(pid) for pid in map(int, pids.strip("[]\n").split(","))]
        self.wait_for("runs", ranks)

    def wait_for(self, word, times):
        """Lines of stdout with `word`, once there are so many."""
        while len(found := [line for line in self._lines if word in line]) < times:
            self._lines.append(self.process.stdout.readline())
            assert self._lines[-1], self.process.stderr.read()
        return found

    def end(self, seconds=12):
        """(status, stderr) once all ranks have ended."""
        begin = time.monotonic()
        _, left = psutil.wait_procs(self.ranks, timeout=seconds)
        for process in left:
            process.kill()
        assert not left, f"{left} still ran after {time.monotonic() - begin:.1f} s"
        _, said = self.process.communicate(timeout=5)
        return self.process.returncode, said


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_killed_rank_ends_the_others_with_one_sentence(dead):
    run = Launch("wait_in_c()", ranks=3)
    time.sleep(0.3)  # until they have found each other
    run.ranks[dead].kill()
    status, said = run.end()
    assert status == 9
    assert said.count("error: ") == 1 and f"rank {dead} died or was killed; perhaps memory ran out" in said
    assert "All ranks end. Start it again" in said and "Traceback" not in said


def test_the_launcher_killed_while_ranks_start_ends_them():
    run = Launch("wait_in_c()")
    run.process.kill()
    _, said = run.end()
    assert said.count("error: ") == 1 and "the launcher died or was killed" in said


def test_mmchat_train_has_the_word_if_only_its_launcher_was_killed():
    run = Launch("wait_in_c()", **{LAUNCHED_BY: str(os.getpid())})
    run.process.kill()
    assert run.end()[1] == ""


def test_a_launcher_that_was_gone_before_the_rank_looked_ends_it():
    """As agreed on through the environment: `mmchat train` with that number no longer runs."""
    run = Launch("wait_in_c()", ranks=1, **{LAUNCHED_BY: "999999"})
    assert "the launcher died or was killed" in run.end()[1]


adopted = pytest.mark.skipif(
    not signals._is_reaper(1), reason="process 1 is a Python program here, which could be a launcher as well"
)


def without_parent(tmp_path, *words, ranks):
    """What ranks print that a process starts whose own parent is gone."""
    started, log = tmp_path / "started", tmp_path / "log"
    python = f"exec {shlex.join(map(str, (sys.executable, '-u', '-c', *words)))}"
    with log.open("w") as output:
        environment = launch_environment(MASTER_PORT="1", WORLD_SIZE=str(ranks), LOCAL_SIZE=str(ranks))
        shell = f"( sleep 0.3; echo $$ > {started}; {python} ) &"
        subprocess.run(["sh", "-c", shell], env=environment, stdout=output, stderr=output, check=True)
    deadline = time.monotonic() + 12
    while not started.exists() or processes_of(tmp_path):
        assert time.monotonic() < deadline, processes_of(tmp_path)
        time.sleep(0.05)
    return log.read_text()


@adopted
def test_ranks_whose_deepspeed_command_was_gone_before_they_looked_end(tmp_path):
    """Its `launch` is still there, as a child of init."""
    said = without_parent(tmp_path, LAUNCHER, 1, f"{RANK}    wait_in_c()  # {tmp_path}\n", LAUNCH, ranks=1)
    assert said.count("error: ") == 1 and "the launcher died or was killed" in said


@adopted
def test_a_rank_that_starts_as_the_launcher_is_killed_leaves_the_sentence_to_the_other(tmp_path):
    """The first has not seen it, and finds it below the process that adopts both."""
    launcher = """
import os, subprocess, sys, time
for rank in range(2):
    time.sleep(rank)
    subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], env=os.environ | {"RANK": str(rank)})
os.kill(os.getpid(), 9)"""
    said = without_parent(tmp_path, launcher, RANK + "    wait_in_c()\n", tmp_path, ranks=2)
    assert said.count("error: ") == 1 and "the launcher died or was killed" in said


def test_sigterm_ends_ranks_that_wait_in_a_collective_before_the_first_step():
    run = Launch("wait_in_c()")
    run.ranks[0].terminate()
    status, said = run.end()
    assert status == 143 and said.count("error: ") == 1
    assert "rank 0 received SIGTERM from a user, or from the launcher because another rank died" in said


def test_sigterm_is_left_to_the_loop_that_handles_it():
    body = """
from mmchat.training.distributed.signals import StopSignals
with StopSignals(watch.launchers) as signals:
    print("steps", flush=True)
    while not sum(signals.flags()):
        time.sleep(0.05)
    time.sleep(0.6)
    print("saved", rank, flush=True)
watch.leave()
sys.exit(143)"""
    run = Launch(body)
    run.wait_for("steps", 2)
    for rank in run.ranks:
        rank.terminate()
    run.wait_for("saved", 2)
    assert run.end() == (143, "")


def test_ranks_that_leave_after_their_last_collective_do_not_count_as_dead():
    run = Launch("time.sleep(0.3)\nwatch.leave()\ntime.sleep(rank)")
    assert run.end() == (0, "")


def test_an_error_of_one_rank_is_the_only_one_that_is_printed():
    """Its traceback stays: it is a defect. The other rank's collective fails of it and says nothing."""
    run = Launch("time.sleep(0.3)\nif rank: raise RuntimeError('a defect')\nwait_in_c()")
    status, said = run.end()
    assert status == 1 and "RuntimeError: a defect" in said and said.count("Traceback") == 1 and "error: " not in said


def test_a_rank_that_fails_does_not_finalize_the_interpreter():
    """A thread that waits in a collective, such as that of an asynchronous save, would then abort the process."""
    body = "import atexit\natexit.register(print, 'finalized', file=sys.stderr)\n"
    status, said = Launch(body + "raise RuntimeError('a defect')", ranks=1).end()
    assert status == 1 and "a defect" in said and "finalized" not in said
    assert "finalized" in Launch(body + "watch.leave()", ranks=1).end()[1]


def test_an_error_of_a_collective_whose_rank_was_killed_has_no_traceback():
    error = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"
    body = f"""
time.sleep(0.3)
if rank: os.kill(os.getpid(), 9)
time.sleep(0.1)
raise RuntimeError({error!r})"""
    _, said = Launch(body).end()
    assert said.count("error: ") == 1 and "rank 1 died or was killed" in said and "Traceback" not in said


def test_a_lost_connection_to_another_node_has_no_traceback():
    error = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:1"
    _, said = Launch(f"raise RuntimeError({error!r})", ranks=1).end()
    assert "rank 0 lost the connection to a rank of another node (Connection closed by peer [10.0.0.2]:1)" in said
    assert "Traceback" not in said


def test_a_mistake_of_the_user_on_one_rank_ends_all_with_its_status():
    body = """
from mmchat.command_line.errors import reporting
from mmchat.errors import UserError
with reporting(0):
    if rank: raise UserError("no such file")
    wait_in_c()"""
    run = Launch("time.sleep(0.3)" + body)
    assert run.end() == (2, "error: no such file\n")


def test_resume_commands(tmp_path):
    one = {"WORLD_SIZE": "8", "LOCAL_SIZE": "8"}
    assert resume_command(tmp_path, one) == f"mmchat train {tmp_path}/config.yaml --ranks 8 --resume"
    assert resume_command(tmp_path, one | {"LOCAL_SIZE": "4"}) == "the same launch command and --resume"
    assert ranks_on_this_machine({}) == 1 and ranks_on_this_machine({"LOCAL_WORLD_SIZE": "2"}) == 2


def test_torch_reports_dead_workers_in_words_that_we_know():
    """The real reports, of a worker that is killed and of one that exits."""
    from torch.utils.data import DataLoader

    class Dying:
        def __init__(self, how):
            self.how = how

        def __len__(self):
            return 4

        def __getitem__(self, _):
            os.kill(os.getpid(), 9) if self.how == "killed" else os._exit(3)

    for how in ("killed", "exits"):
        with pytest.raises(RuntimeError) as caught:
            next(iter(DataLoader(Dying(how), num_workers=1)))
        found = describe_dead_worker(caught.value)
        assert found.startswith("data worker ") and "died or was killed" in found, str(caught.value)
    assert describe_dead_worker(RuntimeError("other")) is None and describe_dead_worker(ValueError()) is None
    report = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that"
    assert describe_dead_worker(RuntimeError(report)) == "data worker 7 died or was killed (Bus error)"


def test_a_worker_that_dies_while_it_hands_over_a_batch_is_described(monkeypatch):
    """The rank sees the broken connection before the worker counts as dead."""
    report = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    looks = iter([None, None, report])

    def look():
        if (found := next(looks)) is not None:
            raise found

    monkeypatch.setattr(torch._C, "_error_if_any_worker_fails", look)
    assert describe_dead_worker(ConnectionResetError(104, "reset")) == "data worker 7 died or was killed (Killed)"
    monkeypatch.setattr(torch._C, "_error_if_any_worker_fails", lambda: None)
    assert describe_dead_worker(EOFError()) is None


def test_a_worker_that_dies_while_torch_is_asked_is_described():
    """Then torch's handler of SIGCHLD raises its report in the main thread, wherever that is."""
    from torch.utils.data import DataLoader

    batches = iter(DataLoader(range(100), num_workers=1, prefetch_factor=2))
    next(batches)
    (worker,) = batches._workers
    killer = Timer(0.3, lambda: os.kill(worker.pid, signal.SIGKILL))
    killer.start()
    assert describe_dead_worker(EOFError()) == f"data worker {worker.pid} died or was killed (Killed)"
