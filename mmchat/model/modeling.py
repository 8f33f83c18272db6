"""The assistant: vision towers, projectors and a causal language model as one transformers model."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmchat.errors import UserError
from mmchat.model.config import MMChatConfig
from mmchat.model.projectors import projector_kind, slots_per_image
from mmchat.model.splice import check_slots, splice
from mmchat.vision import Fit, Grid, TowerConfig, TowerSpec, VisionTower, build_tower, refuse_unequal_views

PixelValues = torch.Tensor | list[torch.Tensor]
Grids = torch.Tensor | list[Grid]


class MMChatForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Pixels -> towers -> projectors -> slots of the token sequence -> language model.

    `towers`, `projectors` and `language_model` are ordinary submodules, and their names are the names of
    the modules in a trainability table. The language model is any `AutoModelForCausalLM`, used whole.
    `image_tokens` is the number of slots of one view: an image has one, or as many as its tiles and thumbnail, or
    as its patches, where its aspect is native.
    """

    config_class = MMChatConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: MMChatConfig) -> None:
        super().__init__(config)
        self.towers = nn.ModuleList(build_tower(TowerConfig.from_dict(tower)) for tower in config.towers)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        refuse_unequal_views(self.specs)
        self.image_tokens = slots_per_image(self.specs, config.projectors, config.fusion)
        self.projectors = nn.ModuleList(self._new_projectors())
        self.post_init()

    def _new_projectors(self) -> list[nn.Module]:
        width = _projected_width(self.config.fusion, len(self.towers), self.get_input_embeddings().embedding_dim)
        pairs = zip(self.config.projectors, self.towers, strict=True)
        return [projector_kind(name).build(tower.spec, width) for name, tower in pairs]

    @property
    def specs(self) -> list[TowerSpec]:
        """The towers', in order."""
        return [tower.spec for tower in self.towers]

    def set_fit(self, fit: Fit) -> None:
        """Be a model that was trained on images fitted in this way; its processor is to be told the same
        (`MMChatProcessor.set_towers`).

        Raises:
            UserError: a tower or its projector cannot have this fit, or the towers would see different views.
        """
        for tower in self.towers:
            tower.set_fit(fit)
        refuse_unequal_views(self.specs)
        self.image_tokens = slots_per_image(self.specs, self.config.projectors, self.config.fusion)
        self.config.towers = [tower.config.to_dict() for tower in self.towers]

    def resize_towers(self, image_sizes: Sequence[int], keep_positions: bool = False) -> None:
        """Be a model for images of another size, in pixels, one for each tower: positions that towers learned are
        stretched or kept (`VisionTower.resized`), and an image has other slots. Its processor is to be told
        (`MMChatProcessor.set_towers`).

        Raises:
            UserError: a tower cannot have that size, a projector learned something for each patch, or towers that are
                fused on channels would give different numbers.
        """
        pairs = zip(self.towers, image_sizes, strict=True)
        self.towers = nn.ModuleList(tower.resized(size, keep_positions) for tower, size in pairs)
        refuse_unequal_views(self.specs)
        self.image_tokens = slots_per_image(self.specs, self.config.projectors, self.config.fusion)
        for place, (old, new) in enumerate(zip(self.projectors, self._new_projectors(), strict=True)):
            shapes, wanted = ({key: t.shape for key, t in one.state_dict().items()} for one in (old, new))
            if shapes != wanted:
                name, side = self.config.projectors[place], image_sizes[place]
                raise UserError(
                    f"projector {name} learned something for each patch, so its tower's images cannot become {side} "
                    "pixels wide; take one that treats patches alike (linear, mlp2x_gelu, pixel_shuffle)"
                )
            new.load_state_dict(old.state_dict())
            self.projectors[place] = new.to(next(old.parameters()).dtype)
        self.config.towers = [tower.config.to_dict() for tower in self.towers]

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def get_image_features(self, pixel_values: PixelValues, grids: Grids | None = None) -> torch.Tensor:
        """What is written into the slots.

        Args:
            pixel_values: float[views, 3, H, W], or a list of such, one per tower.
            grids: rows and columns of every image's patches, where their aspect is native: int[images, 2], best on
                the CPU, or a list of tuples.

        Returns:
            float[views, image_tokens, D] with D the language model's embedding width.
        """
        per_tower = [pixel_values] if isinstance(pixel_values, torch.Tensor) else pixel_values
        if len(per_tower) != len(self.towers):
            raise ValueError(f"pixel values for {len(per_tower)} towers, but the model has {len(self.towers)}")
        if isinstance(grids, torch.Tensor):
            grids = [(rows, columns) for rows, columns in grids.tolist()]
        pairs = zip(self.towers, per_tower, strict=True)
        return self.project([run_tower(tower, pixels, grids) for tower, pixels in pairs])

    def project(self, tower_features: list[torch.Tensor]) -> torch.Tensor:
        """The same from what the towers gave, float[views, N, width of the tower] for each."""
        pairs = zip(self.projectors, tower_features, strict=True)
        projected = [projector(features) for projector, features in pairs]
        return torch.cat(projected, dim=-1 if self.config.fusion == "channels" else 1)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: PixelValues | None = None,
        tower_features: list[torch.Tensor] | None = None,
        image_features: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        dummy_images: int = 0,
        grids: Grids | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """One pass; everything not named here (`past_key_values`, `position_ids`, `logits_to_keep`,
        `num_items_in_batch`, ...) goes to the language model as it is.

        Args:
            input_ids: int[B, L] with the slots already expanded.
            attention_mask: int[B, L], 0 where padded, on either side.
            pixel_values: float[views, 3, H, W] (or a list, one per tower), images in reading order.
            tower_features: per tower float[views, N, width], instead of pixels: what it gave for them.
            image_features: the result of `get_image_features`, where the caller has it already.
            inputs_embeds: float[B, L, D] instead of `input_ids`, features already spliced in.
            labels: int[B, L], -100 where not supervised; the language model shifts them by one.
            dummy_images: how many images of one view at the end fill no slot. A rank without images
                passes one, so that every rank runs the same modules and the projector's gradient is zero, not absent.
            grids: as in `get_image_features`, beside pixel values.

        Raises:
            ValueError: slots and images disagree in number (checked where the ids lie on the CPU).
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            seen = tower_features if pixel_values is None else pixel_values
            if seen is not None and image_features is None:
                if input_ids.device.type == "cpu":
                    views = len(seen if isinstance(seen, torch.Tensor) else seen[0])
                    check_slots(input_ids, self.config.image_token_id, views - dummy_images, self.image_tokens)
                image_features = self.project(seen) if pixel_values is None else self.get_image_features(seen, grids)
            if image_features is not None:
                inputs_embeds = splice(inputs_embeds, input_ids, image_features, self.config.image_token_id)
        return self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, labels=labels, **kwargs)

    def _expand_inputs_for_generation(self, expand_size: int = 1, input_ids: torch.Tensor | None = None, **kwargs):
        """Beams and several answers per prompt copy rows; each copy needs all images of its row, in order."""
        names = [name for name in ("pixel_values", "image_features", "grids") if kwargs.get(name) is not None]
        images = {name: kwargs.pop(name) for name in names}
        if images and expand_size > 1:
            views = (input_ids == self.config.image_token_id).sum(dim=1) // self.image_tokens
            order = repeat_rows(views.tolist(), expand_size)
            if "grids" in images:
                grids = torch.as_tensor(images.pop("grids")).cpu()
                # A row's last image ends where its views end.
                ends = torch.searchsorted(grids.prod(dim=1).cumsum(0), views.cpu().cumsum(0), right=True)
                counts = ends.diff(prepend=ends.new_zeros(1))
                images["grids"] = grids[repeat_rows(counts.tolist(), expand_size)]
            for name in images.keys() - {"grids"}:
                value = images[name]
                copied = [one[order.to(one.device)] for one in (value if isinstance(value, list) else [value])]
                images[name] = copied if isinstance(value, list) else copied[0]
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, input_ids=input_ids, **kwargs)
        return input_ids, {**kwargs, **images}


def repeat_rows(counts: list[int], copies: int) -> torch.Tensor:
    """int64[copies * sum(counts)]: of things that lie row after row, so many in each, which they are when every row is
    repeated. [2, 1] and 2: 0 1 0 1 2 2."""
    return torch.cat([row.repeat(copies) for row in torch.arange(sum(counts)).split(counts)])


def run_tower(tower: VisionTower, pixels: torch.Tensor, grids: list[Grid] | None = None) -> torch.Tensor:
    """Patch features float[B, N, D]; a frozen tower keeps no activations."""
    trained = any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        return (tower(pixels, grids=grids) if tower.spec.native else tower(pixels)).patches


def _projected_width(fusion: str, towers: int, embedding_dim: int) -> int:
    """Width that each projector gives, so that the fused features have the embeddings' width."""
    if fusion == "sequence" or not towers:
        return embedding_dim
    if embedding_dim % towers:
        raise UserError(f"the language model's width {embedding_dim} cannot be shared by {towers} towers on channels")
    return embedding_dim // towers
