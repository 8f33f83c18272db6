"""Trainability is a table: which module is trained, at which rate, and what stays frozen.

A rule belongs to a module by its dotted name; the longest matching name wins. Parameters that a forward
never uses (blocks above a tower's feature layer) are frozen whatever the rule says: a tensor that can get
no gradient must not be decayed by the optimizer.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from rich.table import Table
from torch import nn

from mmchat.errors import UserError
from mmchat.settings import settings
from mmchat.training.distributed import all_reduce
from mmchat.vision import VisionTower


@settings
class Rule:
    """How one module is trained."""

    mode: Literal["frozen", "full"] = Field("full", description="frozen, or full: every parameter is trained")
    lr: float | None = Field(None, ge=0, description="peak learning rate; null takes optimizer.lr")
    weight_decay: float | None = Field(None, ge=0, description="null takes optimizer.weight_decay")


def _spelled_out(rule: Any) -> Any:
    return {"mode": rule} if isinstance(rule, str) else rule


Trainable = dict[str, Annotated[Rule, BeforeValidator(_spelled_out)]]
"""Module name -> rule; a bare mode stands for a rule with the run's own rate and decay."""


@dataclass
class ModuleGroup:
    """The parameters that one rule governs."""

    name: str
    rule: Rule
    trained: dict[str, nn.Parameter]
    frozen: dict[str, nn.Parameter]
    idle: int


def apply_rules(model: nn.Module, rules: dict[str, Rule]) -> list[ModuleGroup]:
    """Set `requires_grad` throughout and return the table, one group per rule.

    Raises:
        UserError: a rule names no module, a parameter has no rule, or nothing would be trained.
    """
    # A parameter that hangs directly on the model (CLIP's logit_scale) is named like a module.
    top = [*(name for name, _ in model.named_children()), *(name for name, _ in model.named_parameters(recurse=False))]
    known = {*top, *(name for name, _ in model.named_modules())}
    for name in rules:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
            raise UserError(
                f"trainable: the model has no module {name!r}; the nearest is {near[0]!r}, top level: {', '.join(top)}"
            )
    idle = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, VisionTower)
        for parameter in module.idle_parameters()
    }
    groups = {name: ModuleGroup(name, rule, {}, {}, 0) for name, rule in rules.items()}
    for name, parameter in model.named_parameters():
        owner = max((r for r in rules if name.startswith(f"{r}.") or name == r), key=len, default=None)
        if owner is None:
            raise UserError(f"trainable: no rule covers {name}; say frozen or full for {name.partition('.')[0]!r}")
        unused = id(parameter) in idle
        trained = rules[owner].mode == "full" and not unused
        parameter.requires_grad_(trained)
        group = groups[owner]
        (group.trained if trained else group.frozen)[name] = parameter
        group.idle += unused * parameter.numel()
    if not any(group.trained for group in groups.values()):
        raise UserError("trainable: every module is frozen, so there is nothing to train")
    return list(groups.values())


def optimizer_groups(groups: list[ModuleGroup], lr: float, weight_decay: float) -> list[dict]:
    """Parameter groups for a torch optimizer; gains and biases (one-dimensional tensors) are not decayed."""
    found = []
    for group in groups:
        rate = lr if group.rule.lr is None else group.rule.lr
        decay = weight_decay if group.rule.weight_decay is None else group.rule.weight_decay
        matrices = [p for p in group.trained.values() if p.ndim >= 2]
        vectors = [p for p in group.trained.values() if p.ndim < 2]
        for parameters, value in ((matrices, decay), (vectors, 0.0)):
            if parameters:
                found.append({"params": parameters, "lr": rate, "weight_decay": value, "name": group.name})
    return found


def render_table(groups: list[ModuleGroup], lr: float, weight_decay: float, origin: str) -> Table:
    """The table that a run prints before its first step."""
    table = Table(title=f"What is trained (weights from {origin})", title_justify="left")
    for column in ("module", "mode", "trained", "frozen", "of these unused", "lr", "weight decay"):
        table.add_column(column, justify="left" if column in ("module", "mode") else "right")
    for group in groups:
        trained = sum(p.numel() for p in group.trained.values())
        frozen = sum(p.numel() for p in group.frozen.values())
        rate = lr if group.rule.lr is None else group.rule.lr
        decay = weight_decay if group.rule.weight_decay is None else group.rule.weight_decay
        table.add_row(
            group.name,
            group.rule.mode,
            f"{trained:,}" if trained else "-",
            f"{frozen:,}" if frozen else "-",
            f"{group.idle:,}" if group.idle else "-",
            f"{rate:g}" if trained else "-",
            f"{decay:g}" if trained else "-",
        )
    return table


class GradientWatch:
    """Notes which trained tensors received a finite, non-zero gradient, at any ZeRO stage.

    Hooks see a gradient when autograd makes it, before DeepSpeed partitions and frees it.
    """

    def __init__(self, groups: list[ModuleGroup]) -> None:
        self._parameters = {name: p for group in groups for name, p in group.trained.items()}
        self._good: set[str] = set()
        self._hooks = [p.register_hook(self._note(name)) for name, p in self._parameters.items()]

    def _note(self, name: str) -> Callable[[torch.Tensor], None]:
        def hook(gradient: torch.Tensor) -> None:
            if bool(torch.isfinite(gradient).all()) and bool(gradient.any()):
                self._good.add(name)

        return hook

    def finish(self) -> list[str]:
        """Stop watching; names of the tensors that got none on any rank."""
        for hook in self._hooks:
            hook.remove()
        good = torch.tensor([name in self._good for name in self._parameters], dtype=torch.float32)
        good = all_reduce(good, "max")
        return [name for name, seen in zip(self._parameters, good.tolist(), strict=True) if not seen]
