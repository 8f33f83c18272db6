"""The ranks' process group: how long they wait for each other."""

from datetime import timedelta

import pytest
import torch.distributed as dist
from deepspeed.comm import comm
from deepspeed.utils import groups

from mmchat.training.distributed import collectives, process_group
from mmchat.training.distributed.launch import free_port
from tests.launching import ROOT, run_ranks, write_config
from tests.training_fixtures import run_values, write_records


def test_no_group_waits_for_less_than_a_day(monkeypatch):
    """Neither the group of all ranks, nor ours, nor those of DeepSpeed's engine."""
    limits, begin = [], dist.init_process_group

    def spy(backend, timeout, **options):
        limits.append(timeout)
        begin(backend, timeout=timeout, **options)

    monkeypatch.setattr(comm, "cdb", None)
    monkeypatch.setattr(groups, "_WORLD_GROUP", None)
    monkeypatch.setattr(dist, "init_process_group", spy)
    monkeypatch.setattr(dist, "new_group", lambda ranks=None, timeout=None, **_: limits.append(timeout))
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", **address}.items():
        monkeypatch.setenv(name, value)
    process_group.start()
    try:
        monkeypatch.setattr(process_group, "world_size", lambda: 2)
        collectives.background_group()
        groups._clone_world_group()
    finally:
        process_group.stop()
    assert len(limits) == 3
    assert min(limits) >= timedelta(days=1)


@pytest.mark.slow
def test_ranks_wait_while_rank_0_works_alone(tmp_path, assistant_dir):
    """It measures lengths for packing, then writes the final model, each for longer than the defaults allow."""
    data = write_records(tmp_path / "data", 8)
    values = run_values(tmp_path, assistant_dir, data, steps=2, batch_size=4)
    values["objective"] = {"kind": "assistant", "packing": {"tokens": 512}}
    config = write_config(tmp_path / "run.yaml", **values)
    run_ranks(ROOT / "tests" / "training" / "slow_rank_0.py", config, ranks=2, DEEPSPEED_TIMEOUT="0")
    assert (tmp_path / "run" / "model" / "config.json").exists()
