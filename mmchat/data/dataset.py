"""The mixture as a map-style dataset. Records are decoded and encoded on access, in the data workers."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from mmchat.data.feature_cache import ImageFeatures
from mmchat.data.mixture import Mixture
from mmchat.data.order import BatchOrder
from mmchat.data.records import Rejected
from mmchat.data.samples import EncodedSample, Sample
from mmchat.errors import UserError

DRAFT_OF_SQUARE = 2
"""A draft's sides are at least this multiple of the tower's, which hides the artefacts of libjpeg's coarse decoding."""

Encode = Callable[..., EncodedSample]
"""(record, images, template of its source or None, max_length) -> EncodedSample. If features are cached, `images` is
empty and the features follow as a fifth argument, in the form of `EncodedSample.features`."""

Augment = Callable[[list[Image.Image], int, int | None], list[Image.Image] | list[list[Image.Image]]]
"""(images of a record, sample number, step or None for held-out data) -> the images to encode: one per image, or for
each image one per tower. Random choices are a function of sample number and step."""


class MixtureDataset:
    """Sample number -> `Sample`, or `Rejected` if the record turns out to be unusable.

    A rejected sample is not replaced: its batch is one smaller, and the training loop counts it.
    `dataset[number, step]` augments images for that step; `dataset[number]` reads held-out data, without augmentation.

    Args:
        mixture: The samples.
        encode: The objective's encoding of a record.
        square: Side in pixels of the largest square that a tower sees; sources with `draft` are decoded for it.
        features: Cached tower features. If given, images are not decoded.
        augment: Random changes to images before `encode` sees them.
        order: Which samples a step takes. If given, a record with several captions shows one of them in each epoch: a
            function of (seed, epoch, sample number). Without it, or for held-out data, the record's first is shown.
    """

    def __init__(
        self,
        mixture: Mixture,
        encode: Encode,
        square: int,
        features: ImageFeatures | None = None,
        augment: Augment | None = None,
        order: BatchOrder | None = None,
    ) -> None:
        self.mixture, self.encode, self.square, self.features = mixture, encode, square, features
        self.augment, self.order = augment, order

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | Rejected:
        number, step = key if isinstance(key, tuple) else (key, None)
        source, record = self.mixture.find(number)
        if isinstance(record, Rejected):
            return record
        if record.captions and self.order is not None and step is not None:
            record = record.with_caption(self._caption(len(record.captions), number, step))
        try:
            if self.features is None:
                draft = DRAFT_OF_SQUARE * self.square if source.config.draft else None
                opened = [image.open(draft, source.config.max_pixels) for image in record.images]
                images = opened if self.augment is None else self.augment(opened, number, step)
                encoded = self.encode(record, images, source.config.template, self.mixture.max_length)
            else:
                features = [self.features.read(image, len(record.images) > 1) for image in record.images]
                encoded = self.encode(record, [], source.config.template, self.mixture.max_length, features)
        except UserError as error:
            return Rejected(record.where, record.id, str(error), error.kind)
        return Sample(number, record.id, encoded)

    def _caption(self, captions: int, number: int, step: int) -> int:
        assert self.order is not None
        entropy = [self.order.seed, self.order.epoch_of(step, number), number]
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        return int(draw.integers(captions))
