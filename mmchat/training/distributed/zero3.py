"""Gather parameters that ZeRO 3 shards: between forwards each rank holds a shard, and `parameter.data` is empty."""

from contextlib import AbstractContextManager

import deepspeed
import torch
from torch import nn

from mmchat.training.deepspeed_internals import is_zero_param
from mmchat.training.distributed import process_group


def gathered(module: nn.Module) -> AbstractContextManager:
    """Inside the `with`, every rank holds the module's full parameters, which must not be changed."""
    sharded = [parameter for parameter in module.parameters() if is_zero_param(parameter)]
    return deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded))


def full_state_dict(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """All full parameters by name, on rank 0's CPU; None on other ranks. All ranks call this.

    Parameters are gathered one at a time. Tied parameters appear once, under their first name.
    """
    state = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if process_group.rank() == 0:
                state[name] = parameter.detach().cpu().clone()
    return state if process_group.rank() == 0 else None


@torch.no_grad()
def load_full_state_dict(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Copy the result of `full_state_dict` into a model without sharded parameters."""
    for name, parameter in model.named_parameters():
        parameter.copy_(state.pop(name))
    assert not state
