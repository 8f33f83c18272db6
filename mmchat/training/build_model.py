"""The model that a run trains: read from its directory, with adapters beside it where the table wants them."""

from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn
from transformers.integrations import HfDeepSpeedConfig

from mmchat.errors import UserError
from mmchat.model.attention import use_fast_attention
from mmchat.training.config import RunConfig
from mmchat.training.distributed import collectives
from mmchat.training.distributed.activation_checkpointing import CHECKPOINTING
from mmchat.training.engine import deepspeed_config
from mmchat.training.objectives.base import Objective
from mmchat.training.objectives.registry import objective_class
from mmchat.training.optim.lora import add_adapters
from mmchat.training.optim.param_groups import ModuleGroup, apply_rules
from mmchat.vision import VisionTower
from mmchat.vision.block_tower import BlockTower


@dataclass
class Opened:
    """adapter: PEFT's handle on the objective's model, where a rule says lora. groups: the trainability table."""

    objective: Objective
    adapter: PeftModel | None
    groups: list[ModuleGroup]


def open_model(config: RunConfig, in_parts: bool = False, weights: bool = True) -> Opened:
    """The model in full precision, ready to be trained as the table says.

    in_parts: as ZeRO 3 needs it. Rank 0 alone reads the files, one parameter at a time, and no rank ever holds more
    than its part and the parameter at hand. All ranks call this then.

    weights: False reads none: the shapes are the run's (`planning`).
    """
    if in_parts:
        # transformers looks whether such an object is alive, and builds and fills models by DeepSpeed's zero.Init then.
        zero_init = HfDeepSpeedConfig(deepspeed_config(config, collectives.ranks()))
        objective = objective_class(config.objective.kind)(config)
        del zero_init
    else:
        objective = objective_class(config.objective.kind)(config, weights)
        if not torch.cuda.is_available():
            _let_go_of_files(objective.model)
    torch.manual_seed(config.seed)  # adapters begin alike on every rank
    adapter = add_adapters(objective.model, config.trainable)
    torch.manual_seed(config.seed + collectives.rank())
    towers = objective.model.towers
    for tower in towers:
        if tower.takes_attention:
            use_fast_attention(tower.backbone)
    for part, recomputed in config.distributed.activation_checkpointing.items():
        whole = [tower.backbone for tower in towers] if part == "towers" else [objective.model.get_submodule(part)]
        for module in whole:
            module.activation_checkpointing_enable(CHECKPOINTING[recomputed])
    if config.objective.patch_dropout:
        for tower in towers:
            _drop_patches(tower, config.objective.patch_dropout)
    return Opened(objective, adapter, apply_rules(objective.model, config.trainable))


def _drop_patches(tower: VisionTower, share: float) -> None:
    """Raises UserError where positions are no part of what enters the first block, and so would not go with it."""
    if not isinstance(tower, BlockTower) or tower.position_table is None:
        raise UserError(f"patch_dropout is for towers of blocks with learned positions, found a {tower.config.family}")
    tower.patch_dropout = share


def _let_go_of_files(model: nn.Module) -> None:
    """Weights lie in pages of their file at first, all of which stay in memory as long as one weight is used."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
