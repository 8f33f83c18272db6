"""The ranks' process group: how long they wait for each other."""

from datetime import timedelta

import deepspeed
import pytest

from mmchat.training.distributed import collectives, process_group
from tests.launching import ROOT, run_ranks, write_config
from tests.training_fixtures import run_values, write_records


def test_no_group_waits_for_less_than_a_day(monkeypatch):
    limits = []
    monkeypatch.setattr(deepspeed, "init_distributed", lambda timeout, **_: limits.append(timeout))
    monkeypatch.setattr(process_group, "world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.new_group", lambda timeout, **_: limits.append(timeout))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    process_group.start()
    collectives.background_group()
    assert len(limits) == 2 and min(limits) >= timedelta(days=1)


@pytest.mark.slow
def test_ranks_wait_while_rank_0_works_alone(tmp_path, assistant_dir):
    """It measures lengths for packing, then writes the final model, each for longer than the defaults allow."""
    data = write_records(tmp_path / "data", 8)
    values = run_values(tmp_path, assistant_dir, data, steps=2, batch_size=4)
    values["objective"] = {"kind": "assistant", "packing": {"tokens": 512}}
    config = write_config(tmp_path / "run.yaml", **values)
    run_ranks(ROOT / "tests" / "training" / "slow_rank_0.py", config, ranks=2, DEEPSPEED_TIMEOUT="0")
    assert (tmp_path / "run" / "model" / "config.json").exists()
