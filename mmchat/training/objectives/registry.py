"""The objectives, by the name that a run's config gives them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from mmchat.constants import IGNORE_INDEX, IMAGE_PLACEHOLDER
from mmchat.contrastive.captions import truncate_caption
from mmchat.contrastive.directory import clip_from_config, load_clip_directory, load_tokenizer, save_clip
from mmchat.contrastive.dual_encoder import DualEncoder
from mmchat.contrastive.losses import info_nce, pairwise_sigmoid
from mmchat.data.collate import Batch, Collator
from mmchat.data.feature_store import ImageFeatures
from mmchat.data.records import Record
from mmchat.data.samples import EncodedSample
from mmchat.errors import UserError
from mmchat.model.attention import enable_packing, packed_inputs
from mmchat.model.directory import assistant_from_config, load_assistant, save_assistant
from mmchat.training.config import WEIGHTS, RunConfig
from mmchat.training.objectives.base import ComparingObjective, InSteps, Objective, blank
from mmchat.training.objectives.classify import ClassifyObjective
from mmchat.training.objectives.cross_entropy_loss import cross_entropy_sum
from mmchat.training.objectives.simclr import SimCLRObjective
from mmchat.vision import TowerSpec, preprocess
from mmchat.vision.transforms.augmentation import random_square_crop
from mmchat.vision.transforms.page_augmentation import augment_page


class AssistantObjective(Objective):
    """Next-token loss over the supervised positions of conversations."""

    def __init__(self, config: RunConfig, weights: bool = True) -> None:
        if weights:
            self.model, self.processor = load_assistant(config.model, dtype=WEIGHTS, fit=config.fit)
        else:
            self.model, self.processor = assistant_from_config(config.model, fit=config.fit)
        self.max_length = config.data.max_length
        self.features: ImageFeatures | None = None
        self.collator = Collator(
            pad_id=self.processor.pad_token_id,
            specs=self.processor.image_processor.specs,
            slot_id=self.model.config.image_token_id,
            tokens_per_view=self.processor.image_tokens,
            packs=config.packs,
        )
        if self.collator.packs:
            enable_packing(self.model.language_model)
        if self.processor.image_processor.views_vary:
            _refuse_drafts(config)
        if config.augment_towers:
            _check_augmented(config.augment_towers, self.collator.specs)
        self.augmented = config.augment_towers
        self.augment = InSteps(self._retouch if config.augment_towers else None, config.seed)
        if config.feature_cache is not None and self.collator.specs[0].native:
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
        rendered = self.processor.render(record.messages, views, self.max_length, template=template)
        grids = self.processor.image_processor.grids(image.size for image in images)
        return EncodedSample(rendered.input_ids, rendered.labels, pixels, rendered.cut, features, grids)

    def terms(self, batch: Batch) -> int:
        return batch.supervised

    def loss_sum(self, module: nn.Module, batch: Batch, images_anywhere: bool) -> torch.Tensor:
        seen = {"pixel_values": batch.pixel_values, "tower_features": batch.tower_features, "grids": batch.grids}
        images, dummies = seen, 0
        if not batch.images and (images_anywhere or not self._text_trains()):
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
            return {"pixel_values": [blank(spec, device) for spec in specs], **grids}
        return {"tower_features": [torch.zeros(1, spec.tokens, spec.dim, device=device) for spec in specs]}

    def _text_trains(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.language_model.parameters())

    def save(self, directory: Path) -> None:
        save_assistant(self.model, self.processor, directory)


class ContrastiveObjective(ComparingObjective):
    """Images against captions, all of a step's on all ranks: InfoNCE, or a sigmoid for every pair."""

    model: DualEncoder
    features = None

    def __init__(self, config: RunConfig, weights: bool = True) -> None:
        self.model = load_clip_directory(config.model, dtype=WEIGHTS) if weights else clip_from_config(config.model)
        _check_loss(config.contrastive.loss, self.model, config.model)
        self._losses_of = LOSSES[config.contrastive.loss]
        self.tokenizer = load_tokenizer(config.model, self.model)
        self.spec = self.model.towers[0].spec
        self.augment = InSteps(_squares if config.contrastive.random_crop else None, config.seed)
        self.context_length = self.model.config.context_length
        pad_id = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        self.collator = Collator(pad_id=pad_id, specs=[self.spec])

    def encode(
        self,
        record: Record,
        images: list[Image.Image],
        template: str | None,
        features: list[list[np.ndarray]] | None = None,
    ) -> EncodedSample:
        ids, cut = self.caption_ids(record)
        return EncodedSample(ids, None, [[preprocess(images[0], self.spec)]], cut)

    def caption_ids(self, record: Record) -> tuple[list[int], int]:
        """The caption, and how many of its tokens were cut off.

        Raises:
            UserError: there are not one image and one caption.
        """
        captions = ["".join(turn.parts) for turn in record.turns if turn.role == "assistant"]
        if len(record.images) != 1 or len(captions) != 1:
            raise UserError(f"expected one image and one caption, found {len(record.images)} and {len(captions)}")
        return truncate_caption(self.tokenizer, captions[0].replace(IMAGE_PLACEHOLDER, "").strip(), self.context_length)

    def terms(self, batch: Batch) -> int:
        return batch.images

    def embed(self, module: nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
        """The scalars are the inverse temperature and, where there is one, the bias."""
        pixels, mask = batch.pixel_values, batch.attention_mask
        if pixels is None:
            # Nothing of this micro-batch could be used: run the same modules on nothing, with a gradient of zero.
            pixels, mask = [blank(self.spec, mask.device)], torch.ones_like(mask)
        images, texts, *scalars = module(pixels[0], batch.input_ids, mask)
        return torch.stack([images, texts], dim=1)[: batch.images], *scalars

    def of_pairs(self, pairs: torch.Tensor, *scalars: torch.Tensor) -> torch.Tensor:
        return self._losses_of(*pairs.unbind(dim=1), *scalars).sum()

    def save(self, directory: Path) -> None:
        save_clip(self.model, self.tokenizer, directory)


def _squares(images: list[Image.Image], draw: np.random.Generator) -> list[Image.Image]:
    return [random_square_crop(image, draw) for image in images]


LOSSES = {"softmax": info_nce, "sigmoid": pairwise_sigmoid}


def _check_loss(loss: str, model: DualEncoder, where: str) -> None:
    """Raises UserError where the model is made for the other loss."""
    biased = model.logit_bias is not None
    if biased != (loss == "sigmoid"):
        found = "has a logit_bias, which softmax leaves untrained" if biased else "has no logit_bias"
        other = "sigmoid" if biased else "softmax"
        raise UserError(f"contrastive.loss is {loss}, but the model in {where} {found}; say {other}, or start another")


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


OBJECTIVES: dict[str, type] = {
    "assistant": AssistantObjective,
    "contrastive": ContrastiveObjective,
    "simclr": SimCLRObjective,
    "classify": ClassifyObjective,
}
