"""SimCLR: a tower trained on images alone."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from mmchat.contrastive.losses import nt_xent
from mmchat.contrastive.simclr_model import SimCLR
from mmchat.data.collate import Batch, Collator
from mmchat.data.lengths import Measure
from mmchat.data.mixture import MixtureSource
from mmchat.data.records import Record
from mmchat.data.samples import EncodedSample
from mmchat.errors import UserError
from mmchat.training.config import RunConfig
from mmchat.training.objectives.base import Counts, PairwiseObjective, blank_image
from mmchat.vision import load_tower
from mmchat.vision.directory import save_tower
from mmchat.vision.transforms.augmentation import random_view


class SimCLRObjective(PairwiseObjective):
    """NT-Xent over two views of each image of a step. The run starts from any tower and writes a tower.

    The views of a sample are a function of the seed, the step and the sample's number.
    """

    model: SimCLR

    def __init__(self, config: RunConfig, weights: bool = True) -> None:
        torch.manual_seed(config.seed)  # the head is new, and so may be the tower
        self.model = SimCLR(load_tower(config.model, weights).float(), config.objective)
        self.config, self.seed = config.objective, config.seed
        self.spec = self.model.towers[0].spec
        self.collator = Collator(pad_id=0, specs=[self.spec])

    def augment(self, images: list[Image.Image], number: int, step: int | None) -> list[Image.Image]:
        if len(images) != 1:
            raise UserError(f"expected one image, found {len(images)}")
        draw = np.random.default_rng([self.seed, number, step or 0])
        return [random_view(images[0], self.spec.image_size, self.config.augmentation, draw) for _ in range(2)]

    def encode(
        self,
        record: Record,
        images: list[Image.Image],
        template: str | None,
        max_length: int,
        features: list[list[np.ndarray]] | None = None,
    ) -> EncodedSample:
        views = np.stack([np.asarray(view).transpose(2, 0, 1) for view in images])
        return EncodedSample([self.collator.pad_id], None, [[views]])

    def measure(self, source: MixtureSource, max_length: int) -> Measure:
        return self._sizes

    def _sizes(self, record: Record) -> tuple[int, ...]:
        if len(record.images) != 1:
            raise UserError(f"expected one image, found {len(record.images)}")
        return 1, 0, 1, 2, 2 * self.spec.tokens, 0

    def terms(self, counts: Counts) -> int:
        return counts.images

    def embed(self, module: nn.Module, batch: Batch) -> tuple[torch.Tensor]:
        pixels = batch.pixel_values
        if pixels is None:
            # No sample could be used. Run the same modules as other ranks, with a gradient of zero.
            pixels = [blank_image(self.spec, batch.input_ids.device, views=2)]
        return (module(pixels[0]).unflatten(0, (-1, 2))[: batch.images],)

    def pair_loss_sum(self, pairs: torch.Tensor) -> torch.Tensor:
        return nt_xent(*pairs.unbind(dim=1), self.config.temperature).sum()

    def save(self, directory: Path) -> None:
        save_tower(self.model.towers[0], directory)
