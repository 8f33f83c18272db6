"""What a run optimises. The loop sees a sum of losses and how many terms it has; nothing else of the model.

An objective also knows how to open the model directory that a run starts from, how to encode a record,
and how to write the finished model and prove that it reads back.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from mmchat.constants import IGNORE_INDEX, IMAGE_PLACEHOLDER
from mmchat.contrastive.dual_encoder import DualEncoder, encode_caption, load_clip, save_clip, shape_clip
from mmchat.contrastive.objectives import info_nce
from mmchat.data.collate import Batch, Collator
from mmchat.data.dataset import Encoded
from mmchat.data.feature_store import PictureFeatures
from mmchat.data.records import Record
from mmchat.errors import UserError
from mmchat.model.attention import enable_packing, packed_inputs
from mmchat.model.directory import load_assistant, save_assistant, shape_assistant
from mmchat.training.config import RunConfig
from mmchat.training.cross_entropy import cross_entropy_sum
from mmchat.vision import preprocess

WEIGHTS = "float32"
"""Weights are trained in full precision, whatever they were written in; `precision: bf16` rounds inside the forward."""


class Objective(Protocol):
    """Made of a run's config. weights: False makes new ones of the same shapes and reads none."""

    model: nn.Module
    collator: Collator
    features: PictureFeatures | None
    """Where the towers' features are read from; None where the towers run."""

    def encode(
        self,
        record: Record,
        images: list[Image.Image],
        template: str | None,
        features: list[list[np.ndarray]] | None = None,
    ) -> Encoded:
        """Ids, labels and pixels of a record; `template` is its source's own, if it has one.

        features: instead of images, as `Encoded` has them.
        """

    def terms(self, batch: Batch) -> int:
        """How many losses `loss_sum` adds up; their global number divides the gradient."""

    def loss_sum(self, module: nn.Module, batch: Batch, images_anywhere: bool) -> torch.Tensor: ...

    def save(self, directory: Path) -> None:
        """Write the finished model, reload it strictly and compare what the two compute."""


class AssistantObjective:
    """Next-token loss over the supervised positions of conversations."""

    def __init__(self, config: RunConfig, weights: bool = True) -> None:
        if weights:
            self.model, self.processor = load_assistant(config.model, dtype=WEIGHTS, fit=config.fit)
        else:
            self.model, self.processor = shape_assistant(config.model, fit=config.fit)
        self.max_length = config.data.max_length
        self.features: PictureFeatures | None = None
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
        if config.feature_cache is not None and self.collator.specs[0].native:
            raise UserError(
                "feature_cache keeps a record for each view, and with fit native each patch is one: leave "
                "feature_cache out, or choose another fit"
            )

    def encode(
        self,
        record: Record,
        images: list[Image.Image],
        template: str | None,
        features: list[list[np.ndarray]] | None = None,
    ) -> Encoded:
        pixels = [self.processor.image_processor.pixels(image) for image in images]
        views = [len(per_tower[0]) for per_tower in (pixels if features is None else features)]
        rendered = self.processor.render(record.messages, views, self.max_length, template=template)
        grids = self.processor.image_processor.grids(image.size for image in images)
        return Encoded(rendered.input_ids, rendered.labels, pixels, rendered.cut, features, grids)

    def terms(self, batch: Batch) -> int:
        return batch.supervised

    def loss_sum(self, module: nn.Module, batch: Batch, images_anywhere: bool) -> torch.Tensor:
        seen = {"pixel_values": batch.pixel_values, "tower_features": batch.tower_features, "grids": batch.grids}
        pictures, dummies = seen, 0
        if not batch.images and (images_anywhere or not self._text_trains()):
            # Another rank has images, or nothing that text passes is trained and a backward would have nowhere to go:
            # run the same modules here, into no slot, with a gradient of zero.
            pictures, dummies = self._dummy_picture(batch.input_ids.device), 1
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORE_INDEX
        if batch.packed is None:
            attention = {"attention_mask": batch.attention_mask}
        else:
            attention = packed_inputs(batch.packed, batch.input_ids.device)
        logits = module(
            input_ids=batch.input_ids,
            **pictures,
            dummy_images=dummies,
            # Only positions that predict something supervised reach the head: bool[B, L] -> float[n, V].
            logits_to_keep=F.pad(supervised, (0, 1)),
            use_cache=False,
            **attention,
        ).logits
        return cross_entropy_sum(logits, targets[supervised])

    def _dummy_picture(self, device: torch.device) -> dict[str, list]:
        specs = self.collator.specs
        if self.features is None:
            sizes = [(1, 3, spec.view_size, spec.view_size) for spec in specs]
            grids = {"grids": [(1, 1)]} if specs[0].native else {}
            return {"pixel_values": [torch.zeros(size, device=device) for size in sizes], **grids}
        return {"tower_features": [torch.zeros(1, spec.tokens, spec.dim, device=device) for spec in specs]}

    def _text_trains(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.language_model.parameters())

    def save(self, directory: Path) -> None:
        save_assistant(self.model, self.processor, directory)


class ContrastiveObjective:
    """InfoNCE between pictures and their captions, within one micro-batch on one rank."""

    model: DualEncoder
    features = None

    def __init__(self, config: RunConfig, weights: bool = True) -> None:
        from transformers import AutoTokenizer

        from mmchat.training.distributed import ranks

        if ranks() > 1 or config.micro_batch_size not in (None, config.batch_size):
            raise UserError(
                "objective contrastive compares every picture with every caption of one forward: run it on one rank "
                "and without micro_batch_size (gathering over ranks and accumulation does not exist yet)"
            )
        self.model = load_clip(config.model, dtype=WEIGHTS) if weights else shape_clip(config.model)
        self.tokenizer = AutoTokenizer.from_pretrained(config.model)
        self.spec = self.model.towers[0].spec
        if self.spec.preprocessing.tiling:
            raise UserError(
                "objective contrastive compares one vector a picture; its tower must have another fit than tiles"
            )
        self.context_length = self.model.config.text_config.max_position_embeddings
        pad_id = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        self.collator = Collator(pad_id=pad_id, specs=[self.spec])

    def encode(
        self,
        record: Record,
        images: list[Image.Image],
        template: str | None,
        features: list[list[np.ndarray]] | None = None,
    ) -> Encoded:
        return Encoded(self.caption_ids(record), None, [[preprocess(images[0], self.spec)]])

    def caption_ids(self, record: Record) -> list[int]:
        """Raises UserError where there are not one picture and one caption."""
        captions = ["".join(turn.parts) for turn in record.turns if turn.role == "assistant"]
        if len(record.pictures) != 1 or len(captions) != 1:
            raise UserError(f"expected one image and one caption, found {len(record.pictures)} and {len(captions)}")
        return encode_caption(self.tokenizer, captions[0].replace(IMAGE_PLACEHOLDER, "").strip(), self.context_length)

    def terms(self, batch: Batch) -> int:
        return batch.images

    def loss_sum(self, module: nn.Module, batch: Batch, images_anywhere: bool) -> torch.Tensor:
        if batch.pixel_values is None:
            # Nothing of this step could be used: run the same modules on nothing, with a gradient of zero.
            pixels = torch.zeros(1, 3, self.spec.image_size, self.spec.image_size, device=batch.input_ids.device)
            images, texts, scale = module(pixels, batch.input_ids, torch.ones_like(batch.input_ids))
            return 0 * info_nce(images, texts, scale).sum()
        images, texts, scale = module(batch.pixel_values[0], batch.input_ids, batch.attention_mask)
        return info_nce(images, texts, scale).sum()

    def save(self, directory: Path) -> None:
        save_clip(self.model, self.tokenizer, directory)


def _refuse_drafts(config: RunConfig) -> None:
    """A draft is smaller than its picture, and would be seen in other views."""
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
            f"what a tower sees of a picture hangs on its size, which a draft has not: leave out {', '.join(found)}"
        )


OBJECTIVES: dict[str, type] = {"assistant": AssistantObjective, "contrastive": ContrastiveObjective}
