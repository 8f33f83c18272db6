"""Contrastive training of a dual encoder, as CLIP and SigLIP are trained."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.contrastive.captions import truncate_caption
from mmchat.contrastive.directory import clip_from_config, load_clip_directory, load_tokenizer, save_clip
from mmchat.contrastive.dual_encoder import DualEncoder
from mmchat.contrastive.losses import info_nce, pairwise_sigmoid
from mmchat.data.collate import Batch, Collator
from mmchat.data.lengths import Measure
from mmchat.data.mixture import MixtureSource
from mmchat.data.records import Record, image_and_answer
from mmchat.data.samples import EncodedSample
from mmchat.errors import UserError
from mmchat.training.config import WEIGHTS, RunConfig
from mmchat.training.objectives.base import Counts, PairwiseObjective, TrainingAugment, blank_image
from mmchat.vision import preprocess
from mmchat.vision.transforms.augmentation import random_square_crop


class ContrastiveObjective(PairwiseObjective):
    """All images of a step against all its captions, over all ranks: InfoNCE, or a sigmoid for every pair."""

    model: DualEncoder

    def __init__(self, config: RunConfig, weights: bool = True) -> None:
        self.model = load_clip_directory(config.model, dtype=WEIGHTS) if weights else clip_from_config(config.model)
        _check_loss(config.objective.loss, self.model, config.model)
        self._pair_losses = LOSSES[config.objective.loss]
        self.tokenizer = load_tokenizer(config.model, self.model)
        self.spec = self.model.towers[0].spec
        self.augment = TrainingAugment(_crop_squares, config.seed) if config.objective.random_crop else None
        self.context_length = self.model.config.context_length
        pad_id = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        self.collator = Collator(pad_id=pad_id, specs=[self.spec])

    def encode(
        self,
        record: Record,
        images: list[Image.Image],
        template: str | None,
        max_length: int,
        features: list[list[np.ndarray]] | None = None,
    ) -> EncodedSample:
        ids, cut = self.caption_ids(record)
        return EncodedSample(ids, None, [[preprocess(images[0], self.spec)]], cut)

    def caption_ids(self, record: Record) -> tuple[list[int], int]:
        """Ids of the caption, and the number of tokens that were cut off.

        Raises:
            UserError: there is not exactly one image and one caption.
        """
        _, caption = image_and_answer(record, "caption")
        return truncate_caption(self.tokenizer, caption.replace(IMAGE_PLACEHOLDER, "").strip(), self.context_length)

    def measure(self, source: MixtureSource, max_length: int) -> Measure:
        return self._sizes

    def _sizes(self, record: Record) -> tuple[int, ...]:
        return len(self.caption_ids(record)[0]), 0, 1, 1, self.spec.tokens, 0

    def terms(self, counts: Counts) -> int:
        return counts.images

    def embed(self, module: nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
        """The scalars are the inverse temperature and, if the model has one, the bias."""
        pixels, mask = batch.pixel_values, batch.attention_mask
        if pixels is None:
            # No sample could be used. Run the same modules as other ranks, with a gradient of zero.
            pixels, mask = [blank_image(self.spec, mask.device)], torch.ones_like(mask)
        images, texts, *scalars = module(pixels[0], batch.input_ids, mask)
        return torch.stack([images, texts], dim=1)[: batch.images], *scalars

    def pair_loss_sum(self, pairs: torch.Tensor, *scalars: torch.Tensor) -> torch.Tensor:
        return self._pair_losses(*pairs.unbind(dim=1), *scalars).sum()

    def save(self, directory: Path) -> None:
        save_clip(self.model, self.tokenizer, directory)


def _crop_squares(images: list[Image.Image], draw: np.random.Generator) -> list[Image.Image]:
    return [random_square_crop(image, draw) for image in images]


LOSSES = {"softmax": info_nce, "sigmoid": pairwise_sigmoid}


def _check_loss(loss: str, model: DualEncoder, where: str) -> None:
    """Raises UserError if the model is made for the other loss."""
    biased = model.logit_bias is not None
    if biased != (loss == "sigmoid"):
        found = "has a logit_bias, which softmax leaves untrained" if biased else "has no logit_bias"
        other = "sigmoid" if biased else "softmax"
        raise UserError(f"objective.loss is {loss}, but the model in {where} {found}; set it to {other}")
