"""Selects the layers of the trainability table's lora rules and adds an adapter to them."""

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from mmchat.errors import UserError
from mmchat.model.lora_adapter import LoraShape, add_adapter
from mmchat.model.modeling import MMChatForConditionalGeneration
from mmchat.training.optim.param_groups import below_last, check_names, idle_parameters, rule_for
from mmchat.training.optim.trainable import LORA_DROPOUT, Rule

if TYPE_CHECKING:
    from peft import PeftModel

LINEAR = (nn.Linear, Conv1D)


def add_adapters(model: MMChatForConditionalGeneration, rules: dict[str, Rule]) -> "PeftModel | None":
    """Add an adapter to `model`, in place, as the lora rules say.

    Returns:
        PEFT's handle on the model, or None if there is no lora rule.

    Raises:
        UserError: a rule names no module, a target is not a linear layer of its module, or rules differ in what is one
            for the whole adapter.
    """
    lora = {name: rule for name, rule in rules.items() if rule.mode == "lora"}
    if not lora:
        return None
    check_names(model, rules)
    dropout = _same("dropout", [LORA_DROPOUT if rule.dropout is None else rule.dropout for rule in lora.values()])
    dora = _same("dora", [rule.dora for rule in lora.values()])
    rslora = _same("rslora", [rule.rslora for rule in lora.values()])
    layers = {
        layer: LoraShape(lora[name].lora_rank, lora[name].lora_alpha)
        for name in lora
        for layer in target_layers(model, rules, name)
    }
    return add_adapter(model, layers, dropout, dora=dora, rslora=rslora)


def _same(key: str, values: list[Any]) -> Any:
    """The one value that all lora rules have. Raises UserError if they differ."""
    found = sorted(set(values))
    if len(found) > 1:
        raise UserError(
            f"trainable: the lora rules have {key} {' and '.join(map(str, found)).lower()}; PEFT has one {key} per "
            "adapter, so use the same everywhere"
        )
    return found[0]


def target_layers(model: MMChatForConditionalGeneration, rules: dict[str, Rule], name: str) -> list[str]:
    """Names of the linear layers that rule `name` adapts.

    They belong to no longer rule, are used by a forward, and are in the last blocks if the rule has `last`.

    Raises:
        UserError: there are none, or a target is not among them.
    """
    head, left_out = model.get_output_embeddings(), idle_parameters(model)
    if rules[name].last is not None:
        left_out |= below_last(model, rules)
    candidates = [
        path
        for path, module in model.named_modules()
        if isinstance(module, LINEAR)
        and module is not head
        and id(module.weight) not in left_out
        and rule_for(path, rules) == name
    ]
    targets = rules[name].targets
    if not candidates:
        raise UserError(f"trainable: {name} has no linear layer that LoRA could adapt (the LM head is never one)")
    for target in targets or ():
        if not any(_ends_with(path, target) for path in candidates):
            endings = dict.fromkeys(path.rpartition(".")[2] for path in candidates)
            raise UserError(
                f"trainable: {name} has no linear layer {target!r} to adapt; there are: {', '.join(endings)} "
                "(never the LM head, nor layers that no forward uses)"
            )
    return [path for path in candidates if targets is None or any(_ends_with(path, target) for target in targets)]


def _ends_with(path: str, target: str) -> bool:
    """As PEFT matches: by whole components of the name."""
    return path == target or path.endswith(f".{target}")
