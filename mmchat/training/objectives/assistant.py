"""Next-token training of an assistant: images and text in, answers out."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from mmchat.constants import IGNORE_INDEX
from mmchat.conversion.unsupported import refuse_unsupported_source
from mmchat.data.collate import Batch, Collator
from mmchat.data.config import DataConfig
from mmchat.data.lengths import LengthIndex, LengthMeasure, source_lengths, source_measure
from mmchat.data.mixture import MixtureSource
from mmchat.data.records import Record
from mmchat.data.samples import EncodedSample
from mmchat.errors import UserError
from mmchat.hub import hub_repos
from mmchat.model.attention import PACKABLE, enable_packing, packed_inputs
from mmchat.model.card import source_names
from mmchat.model.directory import assistant_from_config, load_assistant, save_assistant
from mmchat.model.modeling import MMChatForConditionalGeneration
from mmchat.model.processor import MMChatProcessor
from mmchat.training.config import WEIGHTS, RunConfig
from mmchat.training.objectives.base import Counts, Objective, TrainingAugment, blank_image
from mmchat.training.objectives.cross_entropy_loss import cross_entropy_sum
from mmchat.vision import Size, TowerSpec, VisionTower
from mmchat.vision.transforms.page_augmentation import augment_page


class AssistantObjective(Objective):
    """Next-token loss over the supervised positions of conversations.

    Raises:
        UserError: the model cannot be opened, or does not go with `objective` or `data` of the config.
    """

    model: MMChatForConditionalGeneration
    processor: MMChatProcessor
    without_terms = "no token is supervised"

    def __init__(self, config: RunConfig, weights: bool = True) -> None:
        if Path(config.model).is_dir():
            refuse_unsupported_source(config.model)
        self.trained_on = source_names(list(config.data.by_name()))
        if weights:
            self.model, self.processor = load_assistant(config.model, dtype=WEIGHTS, fit=config.objective.fit)
        else:
            self.model, self.processor = assistant_from_config(config.model, fit=config.objective.fit)
        self.model.config.base_models = hub_repos(config.model) or self.model.config.base_models
        self.collator = Collator(
            pad_id=self.processor.pad_token_id,
            specs=self.processor.image_processor.specs,
            slot_id=self.model.config.image_token_id,
            tokens_per_view=self.processor.image_tokens,
            packs=config.objective.packs,
        )
        if self.collator.packs:
            enable_packing(self.model.language_model)
        if self.processor.image_processor.views_vary:
            _refuse_drafts({"data": config.data, "validation": config.validation})
        self.augmented_towers = config.objective.augment_towers
        if self.augmented_towers:
            _check_augmented(self.augmented_towers, self.collator.specs)
        self.augment = TrainingAugment(self._augment, config.seed) if self.augmented_towers else None
        if config.objective.feature_cache is not None and self.collator.specs[0].native:
            raise UserError(
                "objective.feature_cache stores one record per view, and with fit native each patch is a view: leave "
                "feature_cache out, or choose another fit"
            )

    def _augment(self, images: list[Image.Image], draw: np.random.Generator) -> list[list[Image.Image]]:
        """Each image once for every tower, changed for some."""
        changes = [tower in self.augmented_towers for tower in range(len(self.collator.specs))]
        return [[augment_page(image, draw) if changed else image for changed in changes] for image in images]

    def encode(
        self,
        record: Record,
        images: list[Image.Image] | list[list[Image.Image]],
        template: str | None,
        max_length: int,
        features: list[list[np.ndarray]] | None = None,
    ) -> EncodedSample:
        processor = self.processor.image_processor
        pixels = [processor.pixels(image, several=len(images) > 1) for image in images]
        layouts = self.processor.layouts(self._sizes(record, images))
        rendered = self.processor.render(record.turns, layouts, max_length, template=template)
        grids = processor.grids(image.size for image in images)
        maps = [layout.slot_map for layout in layouts if layout.slot_map is not None] or None
        return EncodedSample(rendered.input_ids, rendered.labels, pixels, rendered.cut, features, grids, maps)

    def _sizes(self, record: Record, images: list[Image.Image] | list[list[Image.Image]]) -> list[Size]:
        """Width and height of the images of a record, which are not decoded if their features are cached."""
        if images:
            return [image.size if isinstance(image, Image.Image) else image[0].size for image in images]
        if self.processor.image_processor.views_vary:
            return [image.size() for image in record.images]
        return [(1, 1)] * len(record.images)

    @property
    def packable(self) -> bool:
        return self.model.config.text_config.model_type in PACKABLE

    def measure(self, source: MixtureSource, max_length: int) -> LengthMeasure:
        return source_measure(source, self.processor, max_length)

    def lengths(self, source: MixtureSource, max_length: int) -> LengthIndex:
        """From the cached index. Raises UserError if the source has no usable record."""
        return source_lengths(source, self.measure(source, max_length))

    def towers_to_cache(self) -> list[VisionTower]:
        return [tower for tower in self.model.towers if not any(p.requires_grad for p in tower.parameters())]

    def terms(self, counts: Counts) -> int:
        return counts.supervised

    def loss_sum(self, module: nn.Module, batch: Batch, images_on_any_rank: bool) -> torch.Tensor:
        images = {
            "pixel_values": batch.pixel_values,
            "tower_features": batch.tower_features,
            "grids": batch.grids,
            "slot_indices": batch.slot_indices,
            "slot_weights": batch.slot_weights,
        }
        dummies = 0
        if not batch.images and (images_on_any_rank or not self._language_model_trains()):
            # Another rank has images, or text alone would reach no trained parameter. Run the same modules here on a
            # dummy that fills no slot and gets a gradient of zero.
            images, dummies = self._dummy_image(batch.input_ids.device), 1
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORE_INDEX
        if batch.packed is None:
            attention = {"attention_mask": batch.attention_mask}
        else:
            attention = packed_inputs(batch.packed, batch.input_ids.device)
        logits = module(
            input_ids=batch.input_ids,
            **images,
            dummy_images=dummies,
            # Only positions that predict a supervised token reach the head: bool[B, L] -> float[n, V].
            logits_to_keep=F.pad(supervised, (0, 1)),
            use_cache=False,
            **attention,
        ).logits
        return cross_entropy_sum(logits, targets[supervised])

    def _dummy_image(self, device: torch.device) -> dict[str, list | torch.Tensor]:
        specs, inputs = self.collator.specs, {}
        if specs[0].native:
            inputs["grids"] = [(1, 1)]
        if self.model.uses_slot_maps:
            inputs["slot_indices"] = torch.zeros(0, dtype=torch.long, device=device)
        if self.features is None:
            return {"pixel_values": [blank_image(spec, device) for spec in specs], **inputs}
        features = [torch.zeros(1, spec.tokens, spec.dim, device=device) for spec in specs]
        return {"tower_features": features, **inputs}

    def _language_model_trains(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.language_model.parameters())

    def save(self, directory: Path) -> None:
        save_assistant(self.model, self.processor, directory, self.trained_on)


def _check_augmented(towers: list[int], specs: list[TowerSpec]) -> None:
    """Raises UserError if there is no such tower, or towers see images at their native size."""
    if any(spec.native for spec in specs):
        raise UserError(
            "objective.augment_towers is for towers that see squares; leave it out, or choose another fit than native"
        )
    if unknown := sorted(set(towers) - set(range(len(specs)))):
        raise UserError(f"objective.augment_towers names tower {unknown[0]}; the model's are 0 to {len(specs) - 1}")


def _refuse_drafts(groups: dict[str, DataConfig | None]) -> None:
    """Raises UserError for sources with drafts: a draft is smaller than its image, so it has other views."""
    found = [
        f"{key}.sources.{name}.draft" if data.sources else f"{key}.draft"
        for key, data in groups.items()
        if data is not None
        for name, source in data.by_name().items()
        if source.draft
    ]
    if found:
        raise UserError(
            f"the views of an image depend on its size, which decoding as a draft changes: leave out {', '.join(found)}"
        )
