"""A list of samples becomes one batch of tensors, padded or packed, on the CPU."""

from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch

from mmchat.constants import IGNORE_INDEX
from mmchat.data.feature_store import DTYPES
from mmchat.data.records import Rejected
from mmchat.data.samples import EncodedSample, Sample
from mmchat.vision import TowerSpec, normalise
from mmchat.vision.spec import Grid


@dataclass
class Batch:
    """What one forward takes.

    input_ids, attention_mask: int[B, L], padded on the right. labels: int[B, L], -100 where not supervised.
    pixel_values: per tower float32[views, 3, H, W]; None where the batch holds no image. images: how many it holds.
    rejected: samples that should have been here, with the reason. cut: tokens that `max_length` took away.
    packed: how long the samples are that lie one behind another in the only row; None where each has a row.
    tower_features: per tower [views, tokens, width], instead of pixel values; None where the towers run.
    grids: rows and columns of each image's patches, where the aspect is native, else None.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    pixel_values: list[torch.Tensor] | None
    ids: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    cut: int = 0
    packed: list[int] | None = None
    images: int = 0
    tower_features: list[torch.Tensor] | None = None
    grids: list[Grid] | None = None

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            input_ids=moved(self.input_ids),
            attention_mask=moved(self.attention_mask),
            labels=moved(self.labels),
            pixel_values=self.pixel_values and list(map(moved, self.pixel_values)),
            tower_features=self.tower_features and list(map(moved, self.tower_features)),
        )

    @property
    def views(self) -> int:
        seen = self.pixel_values or self.tower_features
        return 0 if seen is None else len(seen[0])

    @property
    def lengths(self) -> list[int]:
        """Real tokens of each sample."""
        if not self.ids:
            return []
        return self.attention_mask.sum(dim=1).tolist() if self.packed is None else self.packed

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def positions(self) -> int:
        """Tokens and padding."""
        return self.input_ids.numel()

    @property
    def supervised(self) -> int:
        """Positions whose loss counts; nothing predicts the first of a row."""
        return int((self.labels[:, 1:] != IGNORE_INDEX).sum())


@dataclass
class Collator:
    """specs: the towers', in order. slot_id: the slot token, None where sequences hold no slots.

    packs: samples share one row instead of having a padded one each.
    """

    pad_id: int
    specs: list[TowerSpec]
    slot_id: int | None = None
    tokens_per_view: int = 0
    packs: bool = False

    @property
    def square(self) -> int:
        """Side of the largest square that a tower sees, in pixels."""
        return max(spec.image_size for spec in self.specs)

    def __call__(self, items: list[Sample | Rejected]) -> Batch:
        samples = [item for item in items if isinstance(item, Sample)]
        for sample in samples:
            self._check_slots(sample)
        # A batch that lost all its samples still has a row, so that its rank takes part in the step.
        encoded = [sample.encoded for sample in samples]
        rows = [(one.input_ids, _targets(one)) for one in encoded] or [([self.pad_id], [IGNORE_INDEX])]
        lengths = [len(ids) for ids, _ in rows]
        if self.packs:
            rows = [tuple(list(chain(*parts)) for parts in zip(*rows, strict=True))]
        input_ids = torch.full((len(rows), max(len(ids) for ids, _ in rows)), self.pad_id)
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        attention_mask = torch.zeros_like(input_ids)
        for row, (ids, targets) in enumerate(rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids)] = torch.tensor(targets)
            attention_mask[row, : len(ids)] = 1
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            pixel_values=pixel_values([pixels for one in encoded for pixels in one.pixels], self.specs),
            ids=[sample.id for sample in samples],
            rejected=[item for item in items if isinstance(item, Rejected)],
            cut=sum(one.cut for one in encoded),
            packed=lengths if self.packs else None,
            images=sum(one.images for one in encoded),
            tower_features=_tower_features([features for one in encoded for features in one.features or ()]),
            grids=[grid for one in encoded for grid in one.grids or ()] or None,
        )

    def _check_slots(self, sample: Sample) -> None:
        if self.slot_id is None:
            return
        slots, views = sample.encoded.input_ids.count(self.slot_id), sample.encoded.views
        if slots != views * self.tokens_per_view:
            raise ValueError(
                f"sample {sample.id}: {slots} image slots but {views} views x {self.tokens_per_view} features = "
                f"{views * self.tokens_per_view}"
            )


def pixel_values(images: list[list[np.ndarray]], specs: list[TowerSpec]) -> list[torch.Tensor] | None:
    """What the towers take: per image and tower uint8[views, 3, H, W] -> per tower float32[views, 3, H, W]."""
    if not images:
        return None
    return [
        torch.from_numpy(normalise([view for pixels in images for view in pixels[tower]], spec))
        for tower, spec in enumerate(specs)
    ]


def _tower_features(images: list[list[np.ndarray]]) -> list[torch.Tensor] | None:
    if not images:
        return None
    per_tower = (torch.from_numpy(np.concatenate(features)) for features in zip(*images, strict=True))
    return [tensor.view(torch.bfloat16) if images[0][0].dtype == DTYPES["bf16"] else tensor for tensor in per_tower]


def _targets(encoded: EncodedSample) -> list[int]:
    """Labels but for the first: what comes before a sample, be it another one, predicts nothing of it."""
    if encoded.labels is None:
        return [IGNORE_INDEX] * len(encoded.input_ids)
    return [IGNORE_INDEX, *encoded.labels[1:]]
