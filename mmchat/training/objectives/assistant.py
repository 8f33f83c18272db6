"""Next-token training of an assistant: images and text in, answers out."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from mmchat.constants import IGNORE_INDEX
from mmchat.data.collate import Batch, Collator
from mmchat.data.feature_store import ImageFeatures
from mmchat.data.records import Record
from mmchat.data.samples import EncodedSample
from mmchat.errors import UserError
from mmchat.model.attention import enable_packing, packed_inputs
from mmchat.model.directory import assistant_from_config, load_assistant, save_assistant
from mmchat.training.config import WEIGHTS, RunConfig
from mmchat.training.objectives.base import Objective, TrainingAugment, blank_image
from mmchat.training.objectives.cross_entropy_loss import cross_entropy_sum
from mmchat.vision import TowerSpec
from mmchat.vision.transforms.page_augmentation import augment_page


class AssistantObjective(Objective):
    """Next-token loss over the supervised positions of conversations."""

    def __init__(self, config: RunConfig, weights: bool = True) -> None:
        if weights:
            self.model, self.processor = load_assistant(config.model, dtype=WEIGHTS, fit=config.objective.fit)
        else:
            self.model, self.processor = assistant_from_config(config.model, fit=config.objective.fit)
        self.max_length = config.data.max_length
        self.features: ImageFeatures | None = None
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
            _refuse_drafts(config)
        if config.objective.augment_towers:
            _check_augmented(config.objective.augment_towers, self.collator.specs)
        self.augmented = config.objective.augment_towers
        self.augment = TrainingAugment(self._retouch, config.seed) if config.objective.augment_towers else None
        if config.objective.feature_cache is not None and self.collator.specs[0].native:
            raise UserError(
                "feature_cache keeps a record for each view, and with fit native each patch is one: leave "
                "feature_cache out, or choose another fit"
            )

    def _retouch(self, images: list[Image.Image], draw: np.random.Generator) -> list[list[Image.Image]]:
        towers = range(len(self.collator.specs))
        return [[augment_page(one, draw) if tower in self.augmented else one for tower in towers] for one in images]

    def encode(
        self,
        record: Record,
        images: list[Image.Image] | list[list[Image.Image]],
        template: str | None,
        features: list[list[np.ndarray]] | None = None,
    ) -> EncodedSample:
        pixels = [self.processor.image_processor.pixels(image) for image in images]
        views = [len(per_tower[0]) for per_tower in (pixels if features is None else features)]
        rendered = self.processor.render(record.turns, views, self.max_length, template=template)
        grids = self.processor.image_processor.grids(image.size for image in images)
        return EncodedSample(rendered.input_ids, rendered.labels, pixels, rendered.cut, features, grids)

    def terms(self, batch: Batch) -> int:
        return batch.supervised

    def loss_sum(self, module: nn.Module, batch: Batch, images_on_any_rank: bool) -> torch.Tensor:
        seen = {"pixel_values": batch.pixel_values, "tower_features": batch.tower_features, "grids": batch.grids}
        images, dummies = seen, 0
        if not batch.images and (images_on_any_rank or not self._text_trains()):
            # Another rank has images, or nothing that text passes is trained and a backward would have nowhere to go:
            # run the same modules here, into no slot, with a gradient of zero.
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
            # Only positions that predict something supervised reach the head: bool[B, L] -> float[n, V].
            logits_to_keep=F.pad(supervised, (0, 1)),
            use_cache=False,
            **attention,
        ).logits
        return cross_entropy_sum(logits, targets[supervised])

    def _dummy_image(self, device: torch.device) -> dict[str, list]:
        specs = self.collator.specs
        if self.features is None:
            grids = {"grids": [(1, 1)]} if specs[0].native else {}
            return {"pixel_values": [blank_image(spec, device) for spec in specs], **grids}
        return {"tower_features": [torch.zeros(1, spec.tokens, spec.dim, device=device) for spec in specs]}

    def _text_trains(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.language_model.parameters())

    def save(self, directory: Path) -> None:
        save_assistant(self.model, self.processor, directory)


def _check_augmented(towers: list[int], specs: list[TowerSpec]) -> None:
    """Raises UserError where there is no such tower, or the only one takes an image's size from the image."""
    if any(spec.native for spec in specs):
        raise UserError(
            "augment_towers is for towers that see squares; leave it out, or choose another fit than native"
        )
    if unknown := sorted(set(towers) - set(range(len(specs)))):
        raise UserError(f"augment_towers names tower {unknown[0]}; the model's are 0 to {len(specs) - 1}")


def _refuse_drafts(config: RunConfig) -> None:
    """A draft is smaller than its image, and would be seen in other views."""
    parts = {"data": config.data, "validation": config.validation}
    found = [
        f"{key}.sources.{name}.draft" if data.sources else f"{key}.draft"
        for key, data in parts.items()
        if data is not None
        for name, source in data.by_name().items()
        if source.draft
    ]
    if found:
        raise UserError(
            f"what a tower sees of an image hangs on its size, which a draft has not: leave out {', '.join(found)}"
        )
