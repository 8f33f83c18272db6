"""The assistant model: vision towers, projectors and a causal language model in one transformers model."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmchat.errors import UserError
from mmchat.model.config import MMChatConfig
from mmchat.model.projectors import Projectors, projector_kind, slots_per_image
from mmchat.model.splice import check_mapped_slots, check_slots, splice
from mmchat.vision import Fit, Grid, TowerConfig, TowerSpec, VisionTower, build_tower, refuse_unequal_views

PixelValues = torch.Tensor | list[torch.Tensor]
Grids = torch.Tensor | list[Grid]


class MMChatForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Pixels -> towers -> projectors -> image slots of the token sequence -> language model.

    `towers`, `projectors` and `language_model` are ordinary submodules; a trainability table uses their names. The
    language model is any `AutoModelForCausalLM`.

    Args:
        config: The architecture.

    Attributes:
        image_tokens: Number of projected features per view. An image has one view, or one per tile and thumbnail, or
            one per patch if the towers have native aspect. If `uses_slot_maps`, slots are chosen among the features of
            all its views; else each feature has a slot.
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
        self._count_image_tokens()
        self.projectors = Projectors(self._new_projectors(), config.fusion, self._newline_width())
        self.post_init()

    def _count_image_tokens(self) -> None:
        refuse_unequal_views(self.specs)
        self.image_tokens = slots_per_image(self.specs, self.config.projectors, self.config.fusion)

    def _new_projectors(self) -> list[nn.Module]:
        width = _projected_width(self.config.fusion, len(self.towers), self.get_input_embeddings().embedding_dim)
        pairs = zip(self.config.projectors, self.towers, strict=True)
        return [projector_kind(name).build(tower.spec, width) for name, tower in pairs]

    def _newline_width(self) -> int | None:
        has_newline = any(spec.preprocessing.has_newline for spec in self.specs)
        return self.get_input_embeddings().embedding_dim if has_newline else None

    @property
    def uses_slot_maps(self) -> bool:
        """Whether images come with slot maps (`mmchat.vision.SlotMap`), because the fit has slots for a newline."""
        return any(spec.preprocessing.has_newline for spec in self.specs)

    @property
    def specs(self) -> list[TowerSpec]:
        """The specs of the towers, in order."""
        return [tower.spec for tower in self.towers]

    def set_fit(self, fit: Fit) -> None:
        """Change how images are fitted to the towers. Pass the new specs to `MMChatProcessor.set_towers` too.

        Raises:
            UserError: A tower or its projector does not support this fit, or the towers would see different views.
        """
        for tower in self.towers:
            tower.set_fit(fit)
        self._count_image_tokens()
        self.projectors.set_newline(self._newline_width())
        self.config.towers = [tower.config.to_dict() for tower in self.towers]

    def resize_towers(self, image_sizes: Sequence[int], keep_positions: bool = False) -> None:
        """Change the image size of the towers. Pass the new specs to `MMChatProcessor.set_towers` too.

        Args:
            image_sizes: The new size of each tower, in pixels.
            keep_positions: Keep learned positions instead of interpolating them (`VisionTower.resized`).

        Raises:
            UserError: A tower does not support its size, a projector has parameters per patch, or towers that are fused
                on channels would give different numbers of slots.
        """
        pairs = zip(self.towers, image_sizes, strict=True)
        self.towers = nn.ModuleList(tower.resized(size, keep_positions) for tower, size in pairs)
        self._count_image_tokens()
        for index, (old, new) in enumerate(zip(self.projectors, self._new_projectors(), strict=True)):
            old_shapes, new_shapes = ({key: t.shape for key, t in one.state_dict().items()} for one in (old, new))
            if old_shapes != new_shapes:
                name, side = self.config.projectors[index], image_sizes[index]
                raise UserError(
                    f"projector {name} has parameters per patch, so its tower cannot take images of {side} pixels; "
                    "use one without (linear, mlp2x_gelu, pixel_shuffle)"
                )
            new.load_state_dict(old.state_dict())
            self.projectors[index] = new.to(next(old.parameters()).dtype)
        self.config.towers = [tower.config.to_dict() for tower in self.towers]

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def get_image_features(
        self,
        pixel_values: PixelValues,
        grids: Grids | None = None,
        slot_indices: torch.Tensor | None = None,
        slot_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the features that replace the embeddings of image slots.

        Args:
            pixel_values: float[views, 3, H, W], or a list of one per tower.
            grids: With native aspect, rows and columns of each image's patches: int[images, 2], best on the CPU, or a
                list of tuples.
            slot_indices: As in `Projectors.forward`; needed if `uses_slot_maps`.
            slot_weights: As in `Projectors.forward`.

        Returns:
            float[views, image_tokens, D], where D is the language model's hidden size; with `slot_indices`
            float[slots, D].

        Raises:
            ValueError: The number of tensors and towers differs, or slot maps are missing.
        """
        per_tower = [pixel_values] if isinstance(pixel_values, torch.Tensor) else pixel_values
        if len(per_tower) != len(self.towers):
            raise ValueError(f"pixel values for {len(per_tower)} towers, but the model has {len(self.towers)}")
        if isinstance(grids, torch.Tensor):
            grids = [(rows, columns) for rows, columns in grids.tolist()]
        pairs = zip(self.towers, per_tower, strict=True)
        features = [run_tower(tower, pixels, grids) for tower, pixels in pairs]
        return self.project(features, slot_indices, slot_weights)

    def project(
        self,
        tower_features: list[torch.Tensor],
        slot_indices: torch.Tensor | None = None,
        slot_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Project, fuse and arrange tower features. Arguments and result as in `Projectors.forward`."""
        if slot_indices is None and self.uses_slot_maps:
            raise ValueError("images of this model come with slot_indices; `MMChatProcessor.image_inputs` makes them")
        return self.projectors(tower_features, slot_indices, slot_weights)

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
        slot_indices: torch.Tensor | None = None,
        slot_weights: torch.Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Run the model.

        Args:
            input_ids: int[B, L] with image slots expanded.
            attention_mask: int[B, L], 0 at padding on either side.
            pixel_values: float[views, 3, H, W], or a list of one per tower. Images are in reading order.
            tower_features: float[views, N, D of the tower] per tower: features instead of pixels.
            image_features: The result of `get_image_features`, instead of pixels.
            inputs_embeds: float[B, L, D] instead of `input_ids`, with image features spliced in.
            labels: int[B, L], -100 where not supervised. The language model shifts them by one.
            dummy_images: Number of one-view images at the end that fill no slot. A rank without images passes one, so
                that all ranks run the same modules and the projectors have a gradient of zero instead of none.
            grids: As in `get_image_features`.
            slot_indices: As in `get_image_features`.
            slot_weights: As in `get_image_features`.
            **kwargs: Passed to the language model (`past_key_values`, `position_ids`, `logits_to_keep`,
                `num_items_in_batch`, ...).

        Returns:
            The output of the language model.

        Raises:
            ValueError: The numbers of slots and features differ (checked if `input_ids` are on the CPU).
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            images = tower_features if pixel_values is None else pixel_values
            if images is not None and image_features is None:
                if input_ids.device.type == "cpu":
                    self._check_slots(input_ids, images, dummy_images, slot_indices)
                slot_map = (slot_indices, slot_weights)
                image_features = (
                    self.project(images, *slot_map)
                    if pixel_values is None
                    else self.get_image_features(images, grids, *slot_map)
                )
            if image_features is not None:
                inputs_embeds = splice(inputs_embeds, input_ids, image_features, self.config.image_token_id)
        return self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, labels=labels, **kwargs)

    def _check_slots(
        self, input_ids: torch.Tensor, images: PixelValues, dummy_images: int, slot_indices: torch.Tensor | None
    ) -> None:
        slot_id = self.config.image_token_id
        if slot_indices is not None:
            check_mapped_slots(input_ids, slot_id, len(slot_indices))
        else:
            views = len(images if isinstance(images, torch.Tensor) else images[0])
            check_slots(input_ids, slot_id, views - dummy_images, self.image_tokens)

    def _expand_inputs_for_generation(self, expand_size: int = 1, input_ids: torch.Tensor | None = None, **kwargs):
        """Beam search and several answers per prompt copy rows. Each copy needs all images of its row, in order."""
        names = ("pixel_values", "image_features", "grids", "slot_indices", "slot_weights")
        images = {name: kwargs.pop(name) for name in names if kwargs.get(name) is not None}
        if images and expand_size > 1:
            slots = (input_ids == self.config.image_token_id).sum(dim=1).cpu()
            repeat = _repeat_slots if self.uses_slot_maps else self._repeat_views
            images |= repeat(images, slots, expand_size)
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, input_ids=input_ids, **kwargs)
        return input_ids, {**kwargs, **images}

    def _repeat_views(self, images: dict, slots: torch.Tensor, copies: int) -> dict:
        """Repeat the views of each row; `slots`: int[rows]."""
        views = slots // self.image_tokens
        order = repeat_rows(views.tolist(), copies)
        repeated = {}
        for name, value in images.items():
            if name == "grids":
                grids = torch.as_tensor(value).cpu()
                # A row's last image ends where its views end.
                ends = torch.searchsorted(grids.prod(dim=1).cumsum(0), views.cumsum(0), right=True)
                counts = ends.diff(prepend=ends.new_zeros(1))
                repeated[name] = grids[repeat_rows(counts.tolist(), copies)]
            else:
                copied = [one[order.to(one.device)] for one in (value if isinstance(value, list) else [value])]
                repeated[name] = copied if isinstance(value, list) else copied[0]
        return repeated


def _repeat_slots(images: dict, slots: torch.Tensor, copies: int) -> dict:
    """Repeat the slot map of each row: copies show the same features, so each image is encoded once."""
    order = repeat_rows(slots.tolist(), copies)
    names = [name for name in ("slot_indices", "slot_weights", "image_features") if name in images]
    return {name: images[name][order.to(images[name].device)] for name in names}


def repeat_rows(counts: list[int], copies: int) -> torch.Tensor:
    """Indices that repeat each row of concatenated rows, int64[copies * sum(counts)].

    Args:
        counts: Number of items in each row.
        copies: How often each row is repeated.

    Examples:
        >>> repeat_rows([2, 1], 2)
        tensor([0, 1, 0, 1, 2, 2])
    """
    return torch.cat([row.repeat(copies) for row in torch.arange(sum(counts)).split(counts)])


def run_tower(tower: VisionTower, pixels: torch.Tensor, grids: list[Grid] | None = None) -> torch.Tensor:
    """Patch features of a tower, float[views, N, D]. A frozen tower keeps no activations.

    Args:
        tower: The tower.
        pixels: float[views, 3, H, W].
        grids: Rows and columns of each image's patches, for native aspect.
    """
    trained = any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        return (tower(pixels, grids=grids) if tower.spec.native else tower(pixels)).patches


def _projected_width(fusion: str, towers: int, embedding_dim: int) -> int:
    """Output size of each projector, so that the fused features have the hidden size of the language model."""
    if fusion == "sequence" or not towers:
        return embedding_dim
    if embedding_dim % towers:
        raise UserError(
            f"the language model's hidden size {embedding_dim} is not divisible by {towers} towers fused on channels"
        )
    return embedding_dim // towers
