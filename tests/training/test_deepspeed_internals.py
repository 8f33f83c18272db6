"""A canary: fails, and names what changed, if a DeepSpeed release moves what `training.deepspeed_internals` uses."""

import inspect
from importlib.metadata import requires
from importlib.util import find_spec

import pytest
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.checkpoint import ds_to_universal
from deepspeed.comm import comm
from deepspeed.comm.torch import TorchBackend
from deepspeed.runtime import engine as engine_module
from deepspeed.runtime.zero import partition_parameters, stage3, stage_1_and_2
from packaging.specifiers import SpecifierSet

from mmchat.errors import UserError
from mmchat.training import deepspeed_internals
from mmchat.training.deepspeed_internals import (
    LOWER_PRECISION_SAFE_MODULES,
    DeepSpeedZeroConfig,
    TorchCheckpointEngine,
    check_version,
    get_fp32_state_dict_from_zero_checkpoint,
    is_zero_param,
    zero3_linear_wrap,
)
from mmchat.training.distributed.signals import LAUNCH, RUNNER

SIGNATURES = [
    (DeepSpeedEngine.set_gradient_accumulation_boundary, ["self", "is_boundary"]),
    (DeepSpeedEngine.get_global_grad_norm, ["self"]),
    (DeepSpeedEngine.was_step_applied, ["self"]),
    (DeepSpeedEngine.zero_optimization, ["self"]),
    (DeepSpeedEngine.zero_optimization_stage, ["self"]),
    (TorchCheckpointEngine.__init__, ["self", "config_params"]),
    (TorchCheckpointEngine.save, ["self", "state_dict", "path"]),
    (TorchCheckpointEngine.load, ["self", "path", "map_location"]),
    (
        get_fp32_state_dict_from_zero_checkpoint,
        ["checkpoint_dir", "tag", "exclude_frozen_parameters", "lazy_mode"],
    ),
    (zero3_linear_wrap, ["input", "weight", "bias"]),
    (is_zero_param, ["parameter"]),
    (ds_to_universal.main, ["args"]),
    (TorchBackend.__init__, ["self", "backend", "timeout", "init_method", "rank", "world_size", "name"]),
    (TorchBackend.new_group, ["self", "ranks"]),
]
SOURCES = [
    # DeepSpeed's decorators hide these two signatures from `inspect`.
    (DeepSpeedEngine, "def allreduce_gradients(self, bucket_size="),
    (DeepSpeedEngine, "def backward(self, loss, retain_graph=False, scale_wrt_gas=True):"),
    (DeepSpeedEngine, "self.enable_backward_allreduce = True"),
    (DeepSpeedEngine, "if self.enable_backward_allreduce and not self.inside_no_sync_ctxt"),
    (DeepSpeedEngine, "self.checkpoint_engine = create_checkpoint_engine("),
    (DeepSpeedEngine, "self.basic_optimizer = basic_optimizer"),
    (DeepSpeedEngine, "self._global_grad_norm = self.optimizer._global_grad_norm"),
    (stage_1_and_2, "self._global_grad_norm = scaled_global_grad_norm"),
    (stage3, "self._global_grad_norm = scaled_global_grad_norm"),
    (partition_parameters, "param.ds_shape = "),
    (partition_parameters, "param.ds_tensor = "),
    (ds_to_universal, "args.inject_missing_state"),
    (engine_module, "mp_rank_"),
    (comm, "return cdb.new_group(ranks)"),
    (TorchBackend, "if not torch.distributed.is_initialized():"),
]
"""(module or class, a line of its source that shows what we read or set)"""


@pytest.mark.parametrize(("function", "parameters"), SIGNATURES, ids=lambda value: getattr(value, "__name__", ""))
def test_signature(function, parameters) -> None:
    assert list(inspect.signature(function).parameters) == parameters, f"{function.__qualname__} has changed"


@pytest.mark.parametrize(("owner", "line"), SOURCES, ids=[line for _, line in SOURCES])
def test_source_line(owner, line) -> None:
    assert line in inspect.getsource(owner), f"{owner.__name__} no longer has `{line}`: read how it works now"


def test_config_defaults_and_autocast_modules() -> None:
    config = DeepSpeedZeroConfig(stage=2)
    assert (config.reduce_bucket_size, config.max_live_parameters, config.overlap_comm) == (
        500_000_000,
        1_000_000_000,
        False,
    )
    assert {torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d} == set(LOWER_PRECISION_SAFE_MODULES)


def test_shared_memory_operator_can_be_disabled(monkeypatch) -> None:
    import deepspeed

    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)
    deepspeed_internals.disable_shared_memory_collectives()
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False


def test_launcher_modules_exist() -> None:
    assert find_spec(RUNNER) and find_spec(LAUNCH)
    assert "deepspeed.launcher.launch" in inspect.getsource(__import__(RUNNER, fromlist=["main"]))


def test_supported_versions_are_those_that_pip_installs() -> None:
    (requirement,) = (line for line in requires("mmchat") if line.startswith("deepspeed"))
    specifiers = SpecifierSet(requirement.removeprefix("deepspeed"))
    for version in ("0.19.7", "0.19.8", "0.19.9", "0.20.0", "0.20.1", "1.0.0"):
        if version in specifiers:
            check_version(version)
        else:
            with pytest.raises(UserError, match=rf"deepspeed >=0.19.8,<0.20 is required, found {version}"):
                check_version(version)
    check_version("0.19.8+cu128")
