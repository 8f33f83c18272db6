"""Applies the trainability table to a model: what is trained, at which rate and decay, and what stays frozen.

A rule belongs to a module by its dotted name; the longest matching name wins. Parameters that a forward never uses
(blocks above a tower's feature layer) are frozen whatever the rule says: without a gradient they would still be
decayed.
"""

from dataclasses import dataclass

from torch import nn

from mmchat.contrastive.dual_encoder import DualEncoder
from mmchat.errors import UserError, nearest
from mmchat.model.lora_adapter import adapter_parameters
from mmchat.training.deepspeed_internals import full_shape
from mmchat.training.optim.trainable import Rule
from mmchat.vision import VisionTower
from mmchat.vision.classifier import ImageClassifier

SECOND_FACTOR = ".lora_B."
"""In the name of a parameter: LoRA's factor that is zero at first (PEFT's name)."""


@dataclass
class ModuleGroup:
    """The parameters that one rule applies to.

    Args:
        name: of the module, as in the rule.
        trained, frozen: parameters by full name.
        idle: elements of parameters that no forward uses.
    """

    name: str
    rule: Rule
    trained: dict[str, nn.Parameter]
    frozen: dict[str, nn.Parameter]
    idle: int


def check_names(model: nn.Module, rules: dict[str, Rule]) -> None:
    """Raises UserError for a rule that names no module."""
    # A parameter of the model itself (CLIP's logit_scale) is named like a module.
    top = [*(name for name, _ in model.named_children()), *(name for name, _ in model.named_parameters(recurse=False))]
    known = {*top, *(name for name, _ in model.named_modules())}
    for name in rules:
        if name not in known:
            near = nearest(name, sorted(known))
            hint = f"the nearest is {near!r}, " if near else ""
            raise UserError(f"trainable: the model has no module {name!r}; {hint}top level: {', '.join(top)}")


def rule_for(name: str, rules: dict[str, Rule]) -> str | None:
    """The name of the rule for a module or parameter: the longest that equals or is a parent of its name."""
    return max((rule for rule in rules if name == rule or name.startswith(f"{rule}.")), key=len, default=None)


def idle_parameters(model: nn.Module) -> set[int]:
    """`id` of the parameters that no forward uses."""
    towers = [module for module in model.modules() if isinstance(module, VisionTower)]
    return {id(parameter) for tower in towers for parameter in tower.idle_parameters(reads_pooled(model))}


def reads_pooled(model: nn.Module) -> bool:
    """Whether the model uses the pooled output of its towers, for which more layers run than for patch features."""
    return isinstance(model, DualEncoder | ImageClassifier) and model.config.pool == "pooled"


def below_last(model: nn.Module, rules: dict[str, Rule]) -> set[int]:
    """`id` of the parameters that a rule's `last` leaves out: those of its towers below the last blocks.

    Raises:
        UserError: the rule covers no tower, or a tower without such blocks.
    """
    below: set[int] = set()
    for name, rule in rules.items():
        if rule.last is None:
            continue
        covered = {
            path: module
            for path, module in model.named_modules()
            if isinstance(module, VisionTower) and rule_for(path, rules) == name
        }
        if not covered:
            raise UserError(f"trainable: {name} covers no vision tower; `last` counts blocks of towers only")
        for path, tower in covered.items():
            try:
                last = {id(parameter) for parameter in tower.last_parameters(rule.last, reads_pooled(model))}
            except UserError as error:
                raise UserError(
                    f"trainable: {name} cannot train the last {rule.last} blocks of {path}: {error}"
                ) from None
            below |= {id(parameter) for parameter in tower.parameters()} - last
    return below


def apply_rules(model: nn.Module, rules: dict[str, Rule]) -> list[ModuleGroup]:
    """Set `requires_grad` of every parameter.

    Rules of mode lora train what `mmchat.training.optim.lora.add_adapters` added, which must be called first.

    Returns:
        The trainability table, one group per rule.

    Raises:
        UserError: a rule names no module, a parameter has no rule, or nothing would be trained.
    """
    check_names(model, rules)
    idle, adapters, below = idle_parameters(model), adapter_parameters(model), below_last(model, rules)
    groups = {name: ModuleGroup(name, rule, {}, {}, 0) for name, rule in rules.items()}
    for name, parameter in model.named_parameters():
        applicable = rule_for(name, rules)
        if applicable is None:
            raise UserError(
                f"trainable: no rule covers {name}; add frozen, full or lora for {name.partition('.')[0]!r}"
            )
        group = groups[applicable]
        unused = id(parameter) in idle
        wanted = group.rule.mode == "full" or (group.rule.mode == "lora" and id(parameter) in adapters)
        left_out = unused or (group.rule.last is not None and id(parameter) in below)
        parameter.requires_grad_(wanted and not left_out)
        (group.trained if parameter.requires_grad else group.frozen)[name] = parameter
        group.idle += unused * full_shape(parameter).numel()
    assert all(group.trained for group in groups.values() if group.rule.mode == "lora")
    if not any(group.trained for group in groups.values()):
        raise UserError("trainable: every module is frozen, so there is nothing to train")
    return list(groups.values())


def optimizer_groups(groups: list[ModuleGroup], lr: float, weight_decay: float) -> list[dict]:
    """Parameter groups for a torch optimizer. One-dimensional tensors (gains, biases, DoRA's norms) are not decayed.

    With `lora_plus_ratio` the second factors of LoRA form a group with a rate of their own (LoRA+, Hayou et al. 2024,
    arXiv:2402.12354).
    """
    found = []
    for group in groups:
        rate = lr if group.rule.lr is None else group.rule.lr
        decay = weight_decay if group.rule.weight_decay is None else group.rule.weight_decay
        ratio = group.rule.lora_plus_ratio
        seconds = {name: p for name, p in group.trained.items() if ratio is not None and SECOND_FACTOR in name}
        others = [p for name, p in group.trained.items() if name not in seconds]
        matrices = [p for p in others if len(full_shape(p)) >= 2]
        vectors = [p for p in others if len(full_shape(p)) < 2]
        parts = ((matrices, rate, decay), (vectors, rate, 0.0), (list(seconds.values()), rate * (ratio or 1), decay))
        for parameters, lr_of_part, value in parts:
            if parameters:
                found.append({"params": parameters, "lr": lr_of_part, "weight_decay": value, "name": group.name})
    return found
