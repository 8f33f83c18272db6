"""DeepSpeed's config is derived from the run's; a user's JSON is merged over it but may not contradict it."""

import json

import pytest

from mmchat.errors import UserError
from mmchat.settings import load_settings
from mmchat.training.config import RunConfig
from mmchat.training.distributed.deepspeed_config import deepspeed_config
from tests.launching import write_config
from tests.training_fixtures import run_values


@pytest.fixture
def derive(tmp_path):
    """derive(own={...}, **keys of `distributed`): what DeepSpeed gets on two ranks."""

    def make(own=None, **distributed):
        if own is not None:
            (tmp_path / "own.json").write_text(json.dumps(own))
            distributed["deepspeed"] = str(tmp_path / "own.json")
        values = run_values(
            tmp_path, tmp_path / "model", tmp_path / "data.json", micro_batch_size=2, distributed=distributed
        )
        return deepspeed_config(load_settings(RunConfig, write_config(tmp_path / "run.yaml", **values), []), ranks=2)

    return make


def test_one_key_says_what_is_shared_and_where_it_lies(derive):
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [derive()[size] for size in sizes] == [8, 2, 2]
    assert derive(zero_stage=3)["zero_optimization"] == {"stage": 3}
    there = derive(zero_stage=3, offload="all")["zero_optimization"]
    assert there["offload_optimizer"]["device"] == there["offload_param"]["device"] == "cpu"
    assert derive(zero_stage=1, offload="optimizer")["zero_optimization"].keys() == {"stage", "offload_optimizer"}


def test_a_users_own_values_are_laid_over_and_leave_the_rest(derive):
    own = {"zero_optimization": {"stage": 3, "sub_group_size": 5000}, "wall_clock_breakdown": True}
    derived, merged = derive(zero_stage=3, offload="all"), derive(own, zero_stage=3, offload="all")
    assert merged.pop("wall_clock_breakdown") is True
    assert merged["zero_optimization"].pop("sub_group_size") == 5000
    assert merged == derived


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"train_batch_size": "auto", "bf16": {"enabled": "auto"}}, "bf16, train_batch_size are decided by the run"),
        (
            {"zero_optimization": {"stage": 3}},
            "stage is 3, but the run config's distributed.zero_stage is 2; write zero_stage: 3",
        ),
    ],
)
def test_what_would_contradict_the_run_is_refused(derive, own, message):
    with pytest.raises(UserError, match=message):
        derive(own, zero_stage=2)


@pytest.mark.parametrize(("stage", "offload"), [(0, "optimizer"), (2, "all")])
def test_offload_needs_its_stage(derive, stage, offload):
    with pytest.raises(UserError, match=f"offload {offload} needs zero_stage"):
        derive(zero_stage=stage, offload=offload)
