"""The trainability table, as the run config has it: module -> frozen | full | lora, with its own rate and decay.

`training.optim.param_groups` applies it to a model.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmchat.settings import Shorthand, settings

LORA_RANK, LORA_DROPOUT = 128, 0.05
"""LLaVA-1.5's own recipe (scripts/v1_5/finetune_lora.sh), whose alpha is twice the rank."""


LORA_KEYS = ("rank", "alpha", "dropout", "targets", "dora", "rslora", "lora_plus_ratio")


@settings
class Rule:
    """How one module is trained."""

    mode: Literal["frozen", "full", "lora"] = Field(
        "full", description="full: every parameter; lora: low-rank updates of its linear layers. Short: `NAME: MODE`"
    )
    lr: float | None = Field(None, ge=0, description="peak learning rate; null: optimizer.lr")
    weight_decay: float | None = Field(None, ge=0, description="of matrices; null: optimizer.weight_decay")
    last: int | None = Field(
        None, gt=0, description="towers: train only the last N blocks and the norm after them; null: all blocks"
    )
    rank: int | None = Field(None, gt=0, description="lora: rank of an update; null: 128")
    alpha: int | None = Field(None, gt=0, description="lora: updates are scaled by alpha / rank; null: twice the rank")
    dropout: float | None = Field(None, ge=0, lt=1, description="lora: dropout of the input of an update; null: 0.05")
    targets: list[str] | None = Field(
        None, min_length=1, description="lora: names of linear layers, or suffixes of them; null: all but the LM head"
    )
    dora: bool = Field(False, description="lora: train the norm of each output's weights apart from their direction")
    rslora: bool = Field(False, description="lora: scale updates by alpha / sqrt(rank) instead of alpha / rank")
    lora_plus_ratio: float | None = Field(
        None, gt=0, description="lora: learning rate of B as a multiple of A's (LoRA+ uses 16); null: 1"
    )

    @model_validator(mode="after")
    def _lora_keys_only_with_lora(self) -> "Rule":
        keys = [key for key in LORA_KEYS if getattr(self, key) not in (None, False)]
        if keys and self.mode != "lora":
            raise ValueError(f"{', '.join(keys)} belong to mode lora, but the mode is {self.mode}")
        if self.last is not None and self.mode == "frozen":
            raise ValueError("last selects the blocks to train, but the mode is frozen")
        return self

    @property
    def lora_rank(self) -> int:
        return self.rank or LORA_RANK

    @property
    def lora_alpha(self) -> int:
        return self.alpha or 2 * self.lora_rank


Trainable = dict[str, Annotated[Rule, Shorthand("mode")]]
"""Module name -> rule; a bare mode stands for a rule with the rate and decay of `optimizer`."""
