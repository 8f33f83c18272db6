"""LoRA adapters in PEFT's format, added to the weights of their base (Hu et al. 2021, arXiv:2106.09685).

The format is in huggingface/peft: src/peft/tuners/lora/layer.py computes the scale, src/peft/utils/save_and_load.py
names the weights.
"""

import re
from collections.abc import Iterable, Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import torch

from mmchat.errors import UserError
from mmchat.files import read_json_object

CONFIG = "adapter_config.json"
FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
"""Key of one of the two matrices of a layer."""
UNSUPPORTED = ("use_dora", "alpha_pattern", "fan_in_fan_out", "lora_bias", "layer_replication", "megatron_config")
"""Settings that change what an adapter computes, and are refused unless they are empty or false."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Values of `init_lora_weights` that begin so replace the base's weights, which the adapter alone does not hold."""


def holds_adapter(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a LoRA adapter."""
    return any(FACTOR.fullmatch(key) for key in keys)


def merge(
    base: Mapping[str, torch.Tensor], adapter: Mapping[str, torch.Tensor], where: Path
) -> dict[str, torch.Tensor]:
    """The weights of a base with an adapter: W + s B A, where s is alpha / r, or alpha / sqrt(r) with rslora.

    Args:
        base: Key -> tensor.
        adapter: The same keys with `.lora_A` and `.lora_B` before `.weight`. Other keys replace those of `base`; keys
            that `base` lacks are kept, so that a strict load lists them.
        where: The adapter's directory, with its config.

    Raises:
        UserError: The adapter is of another kind, or changes a weight that the base does not have.
    """
    config = _read_config(where)
    merged = dict(base)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in adapter.items():
        if found := FACTOR.fullmatch(key):
            pairs.setdefault(found[1], {})[found[2]] = tensor
        else:
            merged[key] = tensor
    unknown = [layer for layer in pairs if f"{layer}.weight" not in base]
    halves = [layer for layer, factors in pairs.items() if len(factors) != 2]
    if unknown or halves:
        raise UserError(
            f"the adapter in {where} does not fit its base: it changes {', '.join(unknown) or 'nothing'} that the base "
            f"lacks, and has one of two matrices of {', '.join(halves) or 'nothing'}"
        )
    for layer, factors in pairs.items():
        key, rank = f"{layer}.weight", len(factors["A"])
        scale = config["lora_alpha"] / (sqrt(rank) if config.get("use_rslora") else rank)
        delta = scale * (factors["B"].float() @ factors["A"].float())
        merged[key] = (base[key].float() + delta).to(base[key].dtype)
    return merged


def _read_config(where: Path) -> dict[str, Any]:
    config = read_json_object(where / CONFIG)
    problems = [f"{key} {config[key]!r}" for key in UNSUPPORTED if config.get(key)]
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type {config.get('peft_type')!r}")
    if str(config.get("init_lora_weights", True)).startswith(CHANGES_BASE):
        problems.append(f"init_lora_weights {config['init_lora_weights']!r}, which changes the base too")
    if "lora_alpha" not in config:
        problems.append("no lora_alpha")
    if problems:
        raise UserError(f"{where / CONFIG} is not of a plain LoRA: it has {', '.join(problems)}")
    return config
