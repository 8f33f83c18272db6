"""AdamW for everything, or another optimizer for the parameters it is made for and AdamW for the rest."""

from typing import Any

import torch
from torch import nn

from mmchat.extras import require
from mmchat.model.lora_adapter import adapter_parameters
from mmchat.training.config import BITSANDBYTES_OPTIMIZERS, EIGHT_BIT_OPTIMIZERS, PAGED_OPTIMIZERS, OptimizerConfig
from mmchat.training.optim.bf16_adamw import BF16AdamW
from mmchat.training.optim.muon import Muon
from mmchat.training.optim.param_groups import ModuleGroup, optimizer_groups


def build_optimizer(
    model: nn.Module, groups: list[ModuleGroup], config: OptimizerConfig, seed: int = 0
) -> torch.optim.Optimizer:
    """The optimizer of the config, over all parameters that the trainability table trains.

    Args:
        seed: Of stochastic rounding, which steps weights in bf16.

    Raises:
        UserError: bitsandbytes is not installed, and the optimizer is one of its.
    """
    parameter_groups = optimizer_groups(groups, config.lr, config.weight_decay)
    trained = [parameter for group in parameter_groups for parameter in group["params"]]
    in_bf16 = {id(parameter) for parameter in trained if parameter.dtype == torch.bfloat16}
    if config.name == "adamw" and not in_bf16:
        return _adamw(parameter_groups, config)
    if in_bf16:
        chosen = in_bf16
    elif config.name in BITSANDBYTES_OPTIMIZERS:
        chosen = small_moments(model, config, trained)
    else:
        chosen = hidden_matrices(model)
    for_chosen, for_adamw = [], []
    for group in parameter_groups:
        inside = [p for p in group["params"] if id(p) in chosen]
        others = [p for p in group["params"] if id(p) not in chosen]
        for_chosen += [{**group, "params": inside}] if inside else []
        for_adamw += [{**group, "params": others}] if others else []
    parts: dict[str, torch.optim.Optimizer] = {}
    if for_chosen:
        if in_bf16:
            parts["bf16_adamw"] = BF16AdamW(for_chosen, config.lr, config.betas, config.eps, seed)
        else:
            parts[config.name] = _chosen(for_chosen, config)
    if for_adamw:
        parts["adamw"] = _adamw(for_adamw, config)
    return OptimizerOfParts(parts)


def _adamw(groups: list[dict], config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused: one pass over the weights instead of a dozen."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _chosen(groups: list[dict], config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.name == "muon":
        return Muon(groups, lr=config.lr)
    require("bitsandbytes")
    from bitsandbytes.optim import AdamW, AdamW8bit

    kind = AdamW8bit if config.name in EIGHT_BIT_OPTIMIZERS else AdamW
    paged = config.name in PAGED_OPTIMIZERS
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, is_paged=paged)


def hidden_matrices(model: nn.Module) -> set[int]:
    """`id` of the weight of every linear layer except an output head: vocabularies do better with AdamW (Jordan).

    LoRA's factors are excluded: they were published with AdamW.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m is not head}
    return linear - adapter_parameters(model)


def small_moments(model: nn.Module, config: OptimizerConfig, trained: list[nn.Parameter]) -> set[int]:
    """`id` of the parameters that an optimizer of bitsandbytes steps.

    Moments of embeddings stay in fp32, beside torch's AdamW: in 8 bits they are unstable (Dettmers et al. 2021,
    arXiv:2110.02861, section 2.3).
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    left_out = embeddings if config.name in EIGHT_BIT_OPTIMIZERS else set()
    return {id(parameter) for parameter in trained} - left_out


class OptimizerOfParts(torch.optim.Optimizer):
    """Several optimizers as one.

    Muon's steps are scaled to AdamW's root mean square (Liu et al. 2025, arXiv:2502.16982), so that both can share one
    learning rate and one decay. Muon needs whole matrices and does not work on the flat shards of ZeRO.
    """

    def __init__(self, parts: dict[str, torch.optim.Optimizer]) -> None:
        self.parts = parts
        # These are the same dictionaries as in the parts: a schedule that sets a rate here sets it there.
        super().__init__([group for part in parts.values() for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:
        if closure is not None:
            raise ValueError("OptimizerOfParts takes no closure")
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]
