"""Trainability is a table: which module is trained, at which rate, and what stays frozen.

A rule belongs to a module by its dotted name; the longest matching name wins. Parameters that a forward
never uses (blocks above a tower's feature layer) are frozen whatever the rule says: a tensor that can get
no gradient must not be decayed by the optimizer.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from rich.table import Table
from torch import nn

from mmchat.contrastive.dual_encoder import DualEncoder
from mmchat.errors import UserError
from mmchat.model.adapter import LoraShape, adapter_parameters
from mmchat.settings import settings
from mmchat.training.deepspeed_internals import full_shape
from mmchat.training.distributed.collectives import all_reduce
from mmchat.vision import VisionTower
from mmchat.vision.classifier import ImageClassifier

LORA_RANK, LORA_DROPOUT = 128, 0.05
"""LLaVA-1.5's own recipe (scripts/v1_5/finetune_lora.sh), whose alpha is twice the rank."""


@settings
class Rule:
    """How one module is trained."""

    mode: Literal["frozen", "full", "lora"] = Field(
        "full", description="full: every parameter; lora: an update beside its linear layers; `NAME: MODE` says it, too"
    )
    lr: float | None = Field(None, ge=0, description="peak learning rate; null takes optimizer.lr")
    weight_decay: float | None = Field(None, ge=0, description="null takes optimizer.weight_decay")
    last: int | None = Field(
        None, gt=0, description="of a tower: train its last so many blocks and the norm after them; null: all of it"
    )
    rank: int | None = Field(None, gt=0, description="lora: rank of an update; null: 128")
    alpha: int | None = Field(None, gt=0, description="lora: an update is scaled by alpha / rank; null: twice the rank")
    dropout: float | None = Field(None, ge=0, lt=1, description="lora: of what enters an update; null: 0.05")
    targets: list[str] | None = Field(
        None, min_length=1, description="lora: names of linear layers, or their endings; null: all but the LM head"
    )

    @model_validator(mode="after")
    def _lora_keys_only_with_lora(self) -> "Rule":
        keys = [key for key in ("rank", "alpha", "dropout", "targets") if getattr(self, key) is not None]
        if keys and self.mode != "lora":
            raise ValueError(f"{', '.join(keys)} belong to mode lora, but the mode is {self.mode}")
        if self.last is not None and self.mode == "frozen":
            raise ValueError("last says which blocks are trained, but the mode is frozen")
        return self

    @property
    def lora_shape(self) -> LoraShape:
        rank = self.rank or LORA_RANK
        return LoraShape(rank, self.alpha or 2 * rank)


def _spelled_out(rule: Any) -> Any:
    if isinstance(rule, str):
        return {"mode": rule}
    known = [field.name for field in fields(Rule)]
    if isinstance(rule, dict) and (unknown := [str(key) for key in rule if key not in known]):
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown key {unknown[0]!r}; the nearest is {near!r}, there are: {', '.join(known)}")
    return rule


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


def check_names(model: nn.Module, rules: dict[str, Rule]) -> None:
    """Raises UserError for a rule that names no module."""
    # A parameter that hangs directly on the model (CLIP's logit_scale) is named like a module.
    top = [*(name for name, _ in model.named_children()), *(name for name, _ in model.named_parameters(recurse=False))]
    known = {*top, *(name for name, _ in model.named_modules())}
    for name in rules:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
            raise UserError(
                f"trainable: the model has no module {name!r}; the nearest is {near[0]!r}, top level: {', '.join(top)}"
            )


def owner(name: str, rules: dict[str, Rule]) -> str | None:
    """The rule that governs a module or parameter: the longest that is its name or the beginning of it."""
    return max((rule for rule in rules if name == rule or name.startswith(f"{rule}.")), key=len, default=None)


def idle_parameters(model: nn.Module) -> set[int]:
    """`id` of the parameters that no forward uses."""
    towers = [module for module in model.modules() if isinstance(module, VisionTower)]
    return {id(parameter) for tower in towers for parameter in tower.idle_parameters(reads_pooled(model))}


def reads_pooled(model: nn.Module) -> bool:
    """Whether of its towers the pooled output is used, for which more of them runs than for patch features."""
    return isinstance(model, DualEncoder | ImageClassifier) and model.config.pool == "pooled"


def below_last(model: nn.Module, rules: dict[str, Rule]) -> set[int]:
    """`id` of the parameters that a rule's `last` leaves out: what of its towers lies below their last blocks.

    Raises:
        UserError: the rule covers no tower, or one that has no such blocks.
    """
    below: set[int] = set()
    for name, rule in rules.items():
        if rule.last is None:
            continue
        covered = {
            path: module
            for path, module in model.named_modules()
            if isinstance(module, VisionTower) and owner(path, rules) == name
        }
        if not covered:
            raise UserError(f"trainable: {name} covers no vision tower, of which alone `last` counts the blocks")
        for path, tower in covered.items():
            try:
                last = {id(parameter) for parameter in tower.last_parameters(rule.last, reads_pooled(model))}
            except UserError as error:
                raise UserError(
                    f"trainable: {name} is to train the last {rule.last} blocks of {path}: {error}"
                ) from None
            below |= {id(parameter) for parameter in tower.parameters()} - last
    return below


def apply_rules(model: nn.Module, rules: dict[str, Rule]) -> list[ModuleGroup]:
    """Set `requires_grad` throughout and return the table, one group per rule.

    Rules of mode lora need `mmchat.training.optim.lora.add_adapters` first: what it added is what they train.

    Raises:
        UserError: a rule names no module, a parameter has no rule, or nothing would be trained.
    """
    check_names(model, rules)
    idle, adapters, below = idle_parameters(model), adapter_parameters(model), below_last(model, rules)
    groups = {name: ModuleGroup(name, rule, {}, {}, 0) for name, rule in rules.items()}
    for name, parameter in model.named_parameters():
        governing = owner(name, rules)
        if governing is None:
            raise UserError(
                f"trainable: no rule covers {name}; say frozen, full or lora for {name.partition('.')[0]!r}"
            )
        group = groups[governing]
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
    """Parameter groups for a torch optimizer; gains and biases (one-dimensional tensors) are not decayed."""
    found = []
    for group in groups:
        rate = lr if group.rule.lr is None else group.rule.lr
        decay = weight_decay if group.rule.weight_decay is None else group.rule.weight_decay
        matrices = [p for p in group.trained.values() if len(full_shape(p)) >= 2]
        vectors = [p for p in group.trained.values() if len(full_shape(p)) < 2]
        for parameters, value in ((matrices, decay), (vectors, 0.0)):
            if parameters:
                found.append({"params": parameters, "lr": rate, "weight_decay": value, "name": group.name})
    return found


def render_table(groups: list[ModuleGroup], lr: float, weight_decay: float, origin: str) -> Table:
    """The table that a run prints before its first step."""
    table = Table(title=f"What is trained (weights from {origin})", title_justify="left")
    for column in ("module", "mode", "trained", "frozen", "of these unused", "lr", "weight decay"):
        # Folded: on a narrow screen a name goes on below rather than lose its end.
        table.add_column(column, justify="left" if column in ("module", "mode") else "right", overflow="fold")
    for group in groups:
        trained = sum(full_shape(p).numel() for p in group.trained.values())
        frozen = sum(full_shape(p).numel() for p in group.frozen.values())
        rate = lr if group.rule.lr is None else group.rule.lr
        decay = weight_decay if group.rule.weight_decay is None else group.rule.weight_decay
        table.add_row(
            group.name,
            _mode(group),
            f"{trained:,}" if trained else "-",
            f"{frozen:,}" if frozen else "-",
            f"{group.idle:,}" if group.idle else "-",
            f"{rate:g}" if trained else "-",
            f"{decay:g}" if trained else "-",
        )
    return table


def _mode(group: ModuleGroup) -> str:
    rule, shape = group.rule, group.rule.lora_shape
    mode = f"lora r{shape.rank} a{shape.alpha}" if rule.mode == "lora" else rule.mode
    return mode if rule.last is None else f"{mode}, last {rule.last}"


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
