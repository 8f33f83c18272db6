"""A list of samples becomes one batch of tensors, padded or packed, on the CPU."""

from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch

from mmchat.constants import IGNORE_INDEX
from mmchat.data.dataset import Encoded, Sample
from mmchat.data.records import Rejected
from mmchat.vision import TowerSpec, normalise


@dataclass
class Batch:
    """What one forward takes.

    input_ids, attention_mask: int[B, L], padded on the right. labels: int[B, L], -100 where not supervised.
    pixel_values: per tower float32[images, 3, H, W]; None where the batch holds no image.
    rejected: samples that should have been here, with the reason. cut: tokens that `max_length` took away.
    packed: how long the samples are that lie one behind another in the only row; None where each has a row.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    pixel_values: list[torch.Tensor] | None
    ids: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    cut: int = 0
    packed: list[int] | None = None

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        pixels = self.pixel_values and [p.to(device, non_blocking=True) for p in self.pixel_values]
        tensors = (t.to(device, non_blocking=True) for t in (self.input_ids, self.attention_mask, self.labels))
        return Batch(*tensors, pixels, self.ids, self.rejected, self.cut, self.packed)

    @property
    def images(self) -> int:
        return 0 if self.pixel_values is None else len(self.pixel_values[0])

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
    tokens_per_image: int = 0
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
            pixel_values=self._pixel_values(encoded),
            ids=[sample.id for sample in samples],
            rejected=[item for item in items if isinstance(item, Rejected)],
            cut=sum(one.cut for one in encoded),
            packed=lengths if self.packs else None,
        )

    def _pixel_values(self, encoded: list[Encoded]) -> list[torch.Tensor] | None:
        images = [pixels for one in encoded for pixels in one.pixels]
        if not images:
            return None
        return [
            torch.from_numpy(normalise(np.stack([pixels[tower] for pixels in images]), spec))
            for tower, spec in enumerate(self.specs)
        ]

    def _check_slots(self, sample: Sample) -> None:
        if self.slot_id is None:
            return
        slots, images = sample.encoded.input_ids.count(self.slot_id), len(sample.encoded.pixels)
        if slots != images * self.tokens_per_image:
            raise ValueError(
                f"sample {sample.id}: {slots} image slots but {images} images x {self.tokens_per_image} features = "
                f"{images * self.tokens_per_image}"
            )


def _targets(encoded: Encoded) -> list[int]:
    """Labels but for the first: what comes before a sample, be it another one, predicts nothing of it."""
    if encoded.labels is None:
        return [IGNORE_INDEX] * len(encoded.input_ids)
    return [IGNORE_INDEX, *encoded.labels[1:]]
