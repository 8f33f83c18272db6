"""The trainability table as a run prints it before its first step."""

from rich.table import Table

from mmchat.training.deepspeed_internals import full_shape
from mmchat.training.optim.param_groups import ModuleGroup


def render_table(groups: list[ModuleGroup], lr: float, weight_decay: float, origin: str) -> Table:
    """A row per rule.

    Args:
        lr, weight_decay: of rules without their own.
        origin: where the weights come from.
    """
    table = Table(title=f"What is trained (weights from {origin})", title_justify="left")
    for column in ("module", "mode", "trained", "frozen", "of these unused", "lr", "weight decay"):
        # On a narrow terminal a name is folded rather than cut.
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
    rule = group.rule
    mode = f"lora r{rule.lora_rank} a{rule.lora_alpha}" if rule.mode == "lora" else rule.mode
    return mode if rule.last is None else f"{mode}, last {rule.last}"
