"""Fills the feature cache before the first step, so that frozen towers do not run during training.

First the ranks divide the samples, read their images and compute each image's key from its bytes. Then they divide the
images without features, each once, and run the towers on them. Complete shards are kept if the run is stopped or
killed, so the next start continues from there.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from mmchat.data.feature_cache import SHARD_BYTES, FeatureStore, ImageFeatures, key_array, remove_damaged_shards
from mmchat.data.mixture import Mixture
from mmchat.errors import SharedError, UserError
from mmchat.files import format_megabytes, free_bytes, write_json
from mmchat.training.distributed import collectives
from mmchat.training.distributed.zero3 import gathered
from mmchat.training.feature_extraction.passes import DistributedPass, FeatureFiller, FoundView, ImagePixels, SampleKeys
from mmchat.training.objectives.base import Objective
from mmchat.vision import TowerSpec, VisionTower

FORMAT = 1
"""Incremented when features are computed differently; older features are then computed again."""
SAMPLES, IMAGES = 256, 32
"""Batch sizes of a rank: samples whose images are read, and images that the towers run on."""


def fill_feature_cache(
    folder: Path,
    precision: str,
    objective: Objective,
    samples: Sequence[tuple[Mixture, Sequence[int]]],
    ranks: DistributedPass,
    console: Console,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Compute the features that the cache lacks, and make `objective` read features instead of running towers.

    All ranks call this, before the engine is built.

    Args:
        folder: of the cache.
        precision: of the towers' forward and of what is stored.
        objective: of an assistant.
        samples: numbers of all samples that the run uses, by mixture.
        ranks: how the ranks pass over them.

    Returns:
        The exit status of a signal that stopped it, or 0.

    Raises:
        SharedError: a tower is trained, an image cannot be used and `on_bad_sample` is "stop", or the disk is full.
    """
    towers, specs = objective.model.towers, objective.collator.specs
    views = "views" if objective.processor.image_processor.views_vary else "images"
    _refuse_trained(towers)
    mixtures, numbers = zip(*samples, strict=True)
    numbered = np.array([(which, number) for which, of_one in enumerate(numbers) for number in of_one])
    with gathered(towers), ranks.signals:
        stores = collectives.from_rank_0(lambda: _opened(folder, precision, towers, specs, console.print))
        found: list[FoundView] = []
        keys = SampleKeys(mixtures, numbered, specs[0])
        if status := ranks.run("looking up features", keys, SAMPLES, found.extend):
            return status
        needed, missing, images = _missing_features(found, stores)
        size = sum(store.record_bytes for store in stores)
        console.print(_summary(folder, needed, missing, size, views))
        if missing:
            collectives.from_rank_0(lambda: _check_free_space(folder, missing * size))
            begin = time.monotonic()
            filler = FeatureFiller(towers, stores, precision, shard_bytes)
            pixels = ImagePixels(mixtures, images, objective.processor.image_processor)
            status = ranks.run("features", pixels, IMAGES, filler.add, filler.flush)
            written, seconds = filler.written_by_all(), time.monotonic() - begin
            console.print(
                f"features of {written // size:,} {views} written, {written / 1e6:,.1f} MB in {seconds:,.1f} s "
                f"({written / size / seconds:,.1f} {views}/s)"
            )
            if status:
                return status
            stores = collectives.from_rank_0(lambda: [store.reopened() for store in stores])
    objective.features = ImageFeatures(stores, specs[0])
    return 0


def move_unused_towers(objective: Objective, zero_stage: int, device: torch.device | str) -> None:
    """Move towers that no step runs to `device`. Under ZeRO 3 they stay, because a rank has only a shard of them."""
    if objective.features is not None and zero_stage < 3:
        objective.model.towers.to(device)


def identity(tower: VisionTower, spec: TowerSpec, precision: str) -> dict[str, Any]:
    """Everything that features depend on besides the image; features of another identity are stored elsewhere."""
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in tower.state_dict().items():
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {
        "format": FORMAT,
        "tower": tower.config.to_dict(),
        "spec": spec.to_dict(),
        "weights": weights.hexdigest(),
        "stored_as": precision,
    }


def _refuse_trained(towers: torch.nn.ModuleList) -> None:
    trained = [name for name, parameter in towers.named_parameters("towers") if parameter.requires_grad]
    if trained:
        raise SharedError(
            f"feature_cache needs frozen towers, but {trained[0]} is trained ({len(trained)} tensors in all); set "
            "`towers: frozen` in trainable, or leave feature_cache out"
        )


def _opened(
    cache: Path,
    precision: str,
    towers: Iterable[VisionTower],
    specs: list[TowerSpec],
    report: Callable[[str], None],
) -> list[FeatureStore]:
    """A store per tower, in a folder named after its identity, which `tower.json` contains."""
    stores = []
    for tower, spec in zip(towers, specs, strict=True):
        values = identity(tower, spec, precision)
        name = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
        folder = cache / name
        try:
            write_json(folder / "tower.json", values)
            store = FeatureStore(folder, (spec.tokens, spec.dim), precision)
            remove_damaged_shards(store)
        except OSError as error:
            raise UserError(f"feature_cache {cache} cannot be used: {error}") from None
        for path in store.damaged:
            report(f"{path} was damaged and is removed; its features are computed again")
        stores.append(store)
    return stores


def _missing_features(found: list[FoundView], stores: list[FeatureStore]) -> tuple[int, int, np.ndarray]:
    """Compare what all ranks found with the stores.

    Returns:
        Number of different views, number without features, and the images that have such views, int64[n, 3].
    """
    keys = key_array([key for key, *_ in found])
    places = np.array([place for _, *place in found], np.int64).reshape(-1, 3)
    parts = collectives.all_gather([(keys, places)])
    keys, first = np.unique(np.concatenate([part for part, _ in parts]), return_index=True)
    stored = np.logical_and.reduce([store.has(keys) for store in stores])
    missing = np.concatenate([part for _, part in parts])[first[~stored]]
    return len(keys), len(missing), np.unique(missing, axis=0)


def _summary(folder: Path, needed: int, missing: int, size: int, views: str) -> str:
    line = f"feature cache {folder}: {needed:,} {views}, {needed - missing:,} of them cached"
    return line + (f"; {missing:,} to compute, {format_megabytes(missing * size)}" if missing else "")


def _check_free_space(folder: Path, needed: int) -> None:
    free = free_bytes(folder)
    if free < needed:
        raise UserError(
            f"feature_cache {folder} has too little space: features need {format_megabytes(needed)} more, "
            f"{format_megabytes(free)} are free. Make room, name another folder, or leave feature_cache out"
        )
