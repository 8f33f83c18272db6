"""ZeRO 3: every rank holds a part of each parameter, and `parameter.data` is empty in between.

What the rest of the code asks of a parameter that may be in parts, in one place.
"""

from contextlib import AbstractContextManager

import deepspeed
import torch
from torch import nn

from mmchat.training.deepspeed_internals import is_zero_param
from mmchat.training.distributed import collectives


def gathered(module: nn.Module) -> AbstractContextManager:
    """Inside a `with`, every rank holds all of the module's parameters; they are not to be changed."""
    parts = [parameter for parameter in module.parameters() if is_zero_param(parameter)]
    return deepspeed.zero.GatheredParameters(parts, enabled=bool(parts))


def full_state_dict(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """All parameters by name, put together on rank 0's CPU one after the other; None on other ranks.

    Tied ones appear once, under their first name. All ranks call this.
    """
    state = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if collectives.rank() == 0:
                state[name] = parameter.detach().cpu().clone()
    return state if collectives.rank() == 0 else None


@torch.no_grad()
def load_full_state_dict(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Write what `full_state_dict` found into a model that is whole."""
    for name, parameter in model.named_parameters():
        parameter.copy_(state.pop(name))
    assert not state
