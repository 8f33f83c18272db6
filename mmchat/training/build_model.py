"""The model that a run trains: read from its directory, with adapters if the trainability table asks for them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.integrations import HfDeepSpeedConfig

from mmchat.errors import UserError
from mmchat.files import read_json_object
from mmchat.hub import resolve
from mmchat.model.attention import use_fast_attention
from mmchat.model.lora_adapter import modules_to_save
from mmchat.training.compilation import compile_parts
from mmchat.training.config import Recomputed, RunConfig
from mmchat.training.distributed import process_group
from mmchat.training.distributed.activation_checkpointing import CHECKPOINTING
from mmchat.training.distributed.deepspeed_config import deepspeed_config
from mmchat.training.fused_kernels import use_liger
from mmchat.training.objectives.base import Objective
from mmchat.training.objectives.registry import objective_class
from mmchat.training.optim.lora import add_adapters
from mmchat.training.optim.nf4 import quantize_frozen
from mmchat.training.optim.param_groups import ModuleGroup, apply_rules
from mmchat.vision import VisionTower
from mmchat.vision.block_tower import BlockTower

if TYPE_CHECKING:
    from peft import PeftModel

FORWARD_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""`precision` -> the type in which linear layers compute."""


@dataclass
class BuiltModel:
    """An objective with its model, ready to be trained.

    Args:
        adapter: PEFT's handle on the model; None without LoRA.
        groups: the trainability table.
    """

    objective: Objective
    adapter: "PeftModel | None"
    groups: list[ModuleGroup]


def build_model(config: RunConfig, sharded: bool = False, weights: bool = True) -> BuiltModel:
    """Open the run's model in full precision and prepare it for training.

    Args:
        sharded: shard it as ZeRO 3 needs it. Only rank 0 reads the files, one parameter at a time, and no rank ever
            holds more than its shard and one parameter. All ranks must call this together.
        weights: False reads none and makes the same shapes (`planning`).

    Raises:
        UserError: the model does not exist, or does not go with the config.
    """
    kind = objective_class(config.objective.kind)
    if sharded:
        _import_language_model(config.model)
        # While this object is alive, transformers builds and fills models under DeepSpeed's zero.Init.
        zero_init = HfDeepSpeedConfig(deepspeed_config(config, process_group.world_size()))
        objective = kind(config)
        del zero_init
    else:
        objective = kind(config, weights)
        if not torch.cuda.is_available():
            _copy_out_of_files(objective.model)
    if config.quantize is not None:
        quantize_frozen(objective.model, config.trainable, FORWARD_DTYPE[config.precision])
    torch.manual_seed(config.seed)  # adapters start with the same values on every rank
    adapter = add_adapters(objective.model, config.trainable)
    torch.manual_seed(config.seed + process_group.rank())
    towers = objective.model.towers
    for tower in towers:
        if tower.takes_attention:
            use_fast_attention(tower.backbone)
    _enable_checkpointing(objective.model, config.distributed.activation_checkpointing)
    if weights:  # what is planned has shapes only
        if config.fused_kernels == "liger":
            use_liger(objective.model)
        compile_parts(objective.model, config.compile)
    if config.objective.patch_dropout:
        for tower in towers:
            _drop_patches(tower, config.objective.patch_dropout)
    groups = apply_rules(objective.model, config.trainable)
    if adapter is not None:
        modules_to_save(objective.model)  # refuses, before any training, what an adapter cannot hold
    return BuiltModel(objective, adapter, groups)


def _import_language_model(source: str) -> None:
    """Import the class of a run's language model.

    DeepSpeed's zero.Init, under which the model is built, wraps the `__init__` of every class and puts back the one
    that it had when the class was made. Experts get theirs from a decorator of transformers
    (`use_experts_implementation`), which is lost if their module is imported there: the next model of the process, to
    verify what was saved, would not run.
    """
    path = resolve(source, weights=False) / "config.json"
    text_config = read_json_object(path).get("text_config") if path.is_file() else None
    model_type = text_config.get("model_type") if isinstance(text_config, dict) else None
    if model_type in CONFIG_MAPPING and (config_class := CONFIG_MAPPING[model_type]) in MODEL_FOR_CAUSAL_LM_MAPPING:
        MODEL_FOR_CAUSAL_LM_MAPPING[config_class]  # importing is all that is wanted


def _enable_checkpointing(model: nn.Module, parts: dict[str, Recomputed]) -> None:
    for part, recomputed in parts.items():
        modules = [tower.backbone for tower in model.towers] if part == "towers" else [model.get_submodule(part)]
        for module in modules:
            module.activation_checkpointing_enable(CHECKPOINTING[recomputed])


def _drop_patches(tower: VisionTower, share: float) -> None:
    """Raises UserError if positions are not added before the first block: they could not be dropped, too."""
    if not isinstance(tower, BlockTower) or tower.position_table is None:
        raise UserError(
            f"objective.patch_dropout needs a tower of blocks with learned positions, found a {tower.config.family}"
        )
    tower.patch_dropout = share


def _copy_out_of_files(model: nn.Module) -> None:
    """Weights are memory-mapped at first, and a whole file stays in memory as long as one of its weights is used."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
