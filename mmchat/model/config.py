"""`MMChatConfig`: the architecture, saved with the weights. It holds no file paths."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mmchat.conversation import DEFAULT_SLOTS
from mmchat.errors import UserError

FUSIONS = ("channels", "sequence")


TYPES: dict[str, tuple[type, ...]] = {
    "towers": (list,),
    "projectors": (list,),
    "slots": (dict,),
    "base_models": (list,),
    "template": (str,),
    "system": (str,),
    "fusion": (str,),
    "image_token_id": (int,),
}
"""Key -> type of its value, which may also be None."""


def _check_types(values: dict[str, Any]) -> None:
    """Raise UserError for values of other types, as damaged files have them."""
    for key, value in values.items():
        inner = value if isinstance(value, list) else ()
        kind = dict if key == "towers" else str
        if not isinstance(value, (*TYPES[key], type(None))) or not all(isinstance(one, kind) for one in inner):
            raise UserError(f"config.json has {key} {value!r:.80}, which is of another type; copy the directory again")


class MMChatConfig(PreTrainedConfig):
    """A language model, vision towers with a projector each, and how their features are fused.

    Args:
        text_config: The language model's own config.
        towers: One `TowerConfig.to_dict()` per vision tower.
        projectors: One projector name (a key of `mmchat.model.projectors.PROJECTORS`) per tower.
        fusion: "channels" concatenates the projected features of all towers on channels (Vary: CLIP + SAM), each
            tower giving an equal part of the hidden size; "sequence" concatenates them on the sequence.
        image_token_id: Id of the slot token (`<imgpad>`) whose embeddings the features replace.
        slots: The slot tokens, `SlotTokens.to_dict()`. None uses `DEFAULT_SLOTS`.
        template: Name of the conversation template that the model was trained with.
        system: System message of conversations that have none. None uses the template's own, "" none.
        base_models: Names on the hub of the models that it was made of, for its model card.

    Raises:
        UserError: `fusion` is unknown, or the numbers of towers and projectors differ.
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
        base_models: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_types(
            {"towers": towers, "projectors": projectors, "slots": slots, "base_models": base_models}
            | {"template": template, "system": system, "fusion": fusion, "image_token_id": image_token_id}
        )
        if isinstance(text_config, dict):
            values = dict(text_config)
            text_config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.text_config = text_config or AutoConfig.for_model("llama")
        if Path(self.text_config.name_or_path).exists():
            self.text_config.name_or_path = ""  # where the language model lay on the machine that joined it
        self.towers = towers or []
        self.projectors = projectors or []
        self.fusion = fusion
        self.image_token_id = image_token_id
        self.slots = slots or DEFAULT_SLOTS.to_dict()
        self.template = template
        self.system = system
        self.base_models = base_models or []
        if fusion not in FUSIONS:
            raise UserError(f"fusion {fusion!r} is unknown; expected one of {', '.join(FUSIONS)}")
        if len(self.towers) != len(self.projectors):
            raise UserError(
                f"{len(self.towers)} vision towers but {len(self.projectors)} projectors; expected one projector each"
            )
        # The language model decides about tied weights, but save_pretrained reads the value here.
        kwargs["tie_word_embeddings"] = self.text_config.tie_word_embeddings
        super().__init__(**kwargs)
