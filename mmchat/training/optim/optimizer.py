"""AdamW for everything, or Muon for the matrices inside the networks and AdamW for the rest."""

from typing import Any

import torch
from torch import nn

from mmchat.model.lora_adapter import adapter_parameters
from mmchat.training.config import OptimizerConfig
from mmchat.training.optim.muon import Muon
from mmchat.training.optim.param_groups import ModuleGroup, optimizer_groups


def build_optimizer(model: nn.Module, groups: list[ModuleGroup], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of the config, over all parameters that the trainability table trains."""
    parameter_groups = optimizer_groups(groups, config.lr, config.weight_decay)
    if config.name == "adamw":
        return _adamw(parameter_groups, config)
    hidden = hidden_matrices(model)
    for_muon, for_adamw = [], []
    for group in parameter_groups:
        matrices = [p for p in group["params"] if id(p) in hidden]
        others = [p for p in group["params"] if id(p) not in hidden]
        for_muon += [{**group, "params": matrices}] if matrices else []
        for_adamw += [{**group, "params": others}] if others else []
    return MuonWithAdamW(for_muon, for_adamw, config)


def _adamw(groups: list[dict], config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused: one pass over the weights instead of a dozen."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def hidden_matrices(model: nn.Module) -> set[int]:
    """`id` of the weight of every linear layer except an output head: vocabularies do better with AdamW (Jordan).

    LoRA's factors are excluded: they were published with AdamW.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m is not head}
    return linear - adapter_parameters(model)


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers as one.

    Muon's steps are scaled to AdamW's root mean square (Liu et al. 2025, arXiv:2502.16982), so that both can share one
    learning rate and one decay. Muon needs whole matrices and does not work on the flat shards of ZeRO.
    """

    def __init__(self, for_muon: list[dict], for_adamw: list[dict], config: OptimizerConfig) -> None:
        self.parts = {}
        if for_muon:
            self.parts["muon"] = Muon(for_muon, lr=config.lr)
        if for_adamw:
            self.parts["adamw"] = _adamw(for_adamw, config)
        # These are the same dictionaries as in the two optimizers: a schedule that sets a rate here sets it there.
        super().__init__([group for part in self.parts.values() for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:
        if closure is not None:
            raise ValueError("MuonWithAdamW takes no closure")
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]
