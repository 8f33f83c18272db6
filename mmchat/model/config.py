"""`MMChatConfig`: the architecture, saved with the weights; holds no path of the machine that made it."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mmchat.conversation import DEFAULT_SLOTS
from mmchat.errors import UserError

FUSIONS = ("channels", "sequence")


class MMChatConfig(PreTrainedConfig):
    """A language model, a list of towers, each with its projector, and how their outputs meet.

    Args:
        text_config: the language model's own config.
        towers: one `TowerConfig.to_dict()` per vision tower.
        projectors: one projector name (as in `mmchat.model.projectors.PROJECTORS`) per tower.
        fusion: "channels" concatenates the towers' projected features per slot (Vary: CLIP + SAM), each
            tower giving an equal share of the width; "sequence" puts them one after another.
        image_token_id: id of the slot token (`<imgpad>`) whose embeddings the features replace.
        slots: the slot tokens, `{"pad": ..., "start": ... | None, "end": ... | None}`.
        template: name of the conversation template that the model was trained with.
        system: the system message of conversations that bring none; None is the template's own, "" is none.
    """

    model_type = "mmchat"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        towers: list[dict[str, Any]] | None = None,
        projectors: list[str] | None = None,
        fusion: str = "channels",
        image_token_id: int | None = None,
        slots: dict[str, str | None] | None = None,
        template: str = "vicuna_v1",
        system: str | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            values = dict(text_config)
            text_config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.text_config = text_config or AutoConfig.for_model("llama")
        self.towers = towers or []
        self.projectors = projectors or []
        self.fusion = fusion
        self.image_token_id = image_token_id
        self.slots = slots or DEFAULT_SLOTS.to_dict()
        self.template = template
        self.system = system
        if fusion not in FUSIONS:
            raise UserError(f"fusion {fusion!r} is unknown; expected one of {', '.join(FUSIONS)}")
        if len(self.towers) != len(self.projectors):
            raise UserError(
                f"{len(self.towers)} vision towers but {len(self.projectors)} projectors; expected one projector each"
            )
        # Tying belongs to the language model; save_pretrained looks for the answer here.
        kwargs["tie_word_embeddings"] = self.text_config.tie_word_embeddings
        super().__init__(**kwargs)
