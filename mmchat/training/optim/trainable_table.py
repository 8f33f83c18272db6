"""The trainability table as a run prints it before its first step."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mmchat.training.optim.nf4 import elements_of
from mmchat.training.optim.param_groups import ModuleGroup

NAME_WIDTH = 20
"""Columns within which the name of a module is not folded."""


def render_table(groups: list[ModuleGroup], lr: float, weight_decay: float, origin: str) -> Table:
    """A row per rule: parameters by the number, those of the frozen that no forward uses, rate and weight decay.

    Args:
        lr, weight_decay: of rules without their own.
        origin: where the weights come from.
    """
    title = f"What is trained (weights from {origin})"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    # A name or mode is folded on a narrow terminal; a number that is folded cannot be read.
    table.add_column("module", overflow="fold", min_width=min(NAME_WIDTH, max(len(group.name) for group in groups)))
    table.add_column("mode", overflow="fold")
    for column in ("trained", "frozen", "unused", "lr", "decay"):
        table.add_column(column, justify="right", no_wrap=True)
    for group in groups:
        trained = sum(map(elements_of, group.trained.values()))
        frozen = sum(map(elements_of, group.frozen.values()))
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
    rule = group.rule
    if rule.mode != "lora":
        return rule.mode if rule.last is None else f"{rule.mode}, last {rule.last}"
    name = "dora" if rule.dora else "lora"
    parts = [f"{name} r{rule.lora_rank} a{rule.lora_alpha}"]
    parts += ["rslora"] if rule.rslora else []
    parts += [f"B x{rule.lora_plus_ratio:g}"] if rule.lora_plus_ratio is not None else []
    parts += [f"last {rule.last}"] if rule.last is not None else []
    return ", ".join(parts)
