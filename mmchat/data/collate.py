"""Collate samples into one batch of tensors, padded or packed, on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch

from mmchat.constants import IGNORE_INDEX
from mmchat.data.feature_cache import DTYPES
from mmchat.data.records import Rejected
from mmchat.data.samples import EncodedSample, Sample
from mmchat.vision import TowerSpec, normalise
from mmchat.vision.layout import join_slot_maps
from mmchat.vision.spec import Grid


@dataclass
class Batch:
    """The input of one forward.

    Attributes:
        input_ids: int[B, L], padded on the right.
        attention_mask: int[B, L].
        labels: int[B, L], -100 if not supervised.
        pixel_values: Per tower float32[views, 3, H, W]; None if the batch holds no image.
        ids: Record ids of the samples.
        rejected: Unusable samples of this batch, with the reason.
        cut: Number of tokens removed by `max_length`.
        packed: Lengths of the samples concatenated in the single row; None if each sample has its own row.
        images: Number of images.
        tower_features: Per tower [views, tokens, width], in place of pixel values; None if the towers run.
        grids: Rows and columns of each image's patches for native-aspect towers, else None.
        slot_indices: int64[slots] or int64[slots, taps], the joined slot maps of the images; None without images, or if
            the slots show all features in order.
        slot_weights: float32[slots, taps] of weighted slot maps, else None.
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
    slot_indices: torch.Tensor | None = None
    slot_weights: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self

        def on_device(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            input_ids=on_device(self.input_ids),
            attention_mask=on_device(self.attention_mask),
            labels=on_device(self.labels),
            pixel_values=self.pixel_values and list(map(on_device, self.pixel_values)),
            tower_features=self.tower_features and list(map(on_device, self.tower_features)),
            slot_indices=None if self.slot_indices is None else on_device(self.slot_indices),
            slot_weights=None if self.slot_weights is None else on_device(self.slot_weights),
        )

    @property
    def views(self) -> int:
        per_tower = self.pixel_values or self.tower_features
        return 0 if per_tower is None else len(per_tower[0])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample, without padding."""
        if not self.ids:
            return []
        return self.attention_mask.sum(dim=1).tolist() if self.packed is None else self.packed

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def positions(self) -> int:
        """Tokens, padding included."""
        return self.input_ids.numel()

    @property
    def supervised(self) -> int:
        """Number of supervised positions. Nothing predicts the first position of a row."""
        return int((self.labels[:, 1:] != IGNORE_INDEX).sum())


@dataclass
class Collator:
    """Makes a `Batch` of samples.

    Attributes:
        pad_id: Padding token.
        specs: Specs of the towers, in order.
        slot_id: Slot token; None if sequences hold no slots.
        tokens_per_view: Slots of one view.
        packs: Concatenate the samples in one row instead of padding each to its own.
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

    def __call__(self, items: Sequence[Sample | Rejected]) -> Batch:
        samples = [item for item in items if isinstance(item, Sample)]
        for sample in samples:
            self._check_slots(sample)
        # A batch without usable samples still has a row, so that its rank takes part in the step.
        encoded = [sample.encoded for sample in samples]
        rows = [(one.input_ids, _targets(one)) for one in encoded] or [([self.pad_id], [IGNORE_INDEX])]
        lengths = [len(ids) for ids, _ in rows]
        if self.packs:
            all_ids, all_targets = (list(chain(*parts)) for parts in zip(*rows, strict=True))
            rows = [(all_ids, all_targets)]
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
            **self._slot_map(encoded),
        )

    def _slot_map(self, samples: list[EncodedSample]) -> dict[str, torch.Tensor]:
        maps = [one for sample in samples for one in sample.slot_maps or ()]
        if not maps:
            return {}
        views = [count for sample in samples for count in sample.views_of_images]
        joined = join_slot_maps(maps, [count * self.tokens_per_view for count in views])
        return {name: torch.from_numpy(array) for name, array in joined.inputs.items()}

    def _check_slots(self, sample: Sample) -> None:
        if self.slot_id is None:
            return
        encoded = sample.encoded
        slots, views = encoded.input_ids.count(self.slot_id), encoded.views
        if encoded.slot_maps:
            mapped = sum(map(len, encoded.slot_maps))
            if slots != mapped:
                raise ValueError(f"sample {sample.id}: {slots} image slots but slot maps of {mapped} slots")
        elif slots != views * self.tokens_per_view:
            raise ValueError(
                f"sample {sample.id}: {slots} image slots but {views} views x {self.tokens_per_view} features = "
                f"{views * self.tokens_per_view}"
            )


def pixel_values(images: list[list[np.ndarray]], specs: list[TowerSpec]) -> list[torch.Tensor] | None:
    """Normalise and stack: per image and tower uint8[views, 3, H, W] -> per tower float32[views, 3, H, W]."""
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
    """Labels without the first: in a packed row, the previous sample must not predict it."""
    if encoded.labels is None:
        return [IGNORE_INDEX] * len(encoded.input_ids)
    return [IGNORE_INDEX, *encoded.labels[1:]]
