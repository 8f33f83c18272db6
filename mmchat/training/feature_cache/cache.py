"""Fills the feature cache before the first step, so that a run with frozen towers never runs them again.

First all ranks share out the samples, read their images and name each by its bytes; then they share out those without
features, however often each comes, and run the towers on them. Shards that are complete stay when the run is stopped or
killed, so whoever starts it again goes on where it was.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from mmchat.data.feature_store import SHARD_BYTES, FeatureStore, ImageFeatures, key_array, remove_damaged_shards
from mmchat.data.quarantine import Quarantine
from mmchat.errors import SharedError, UserError
from mmchat.files import write_json
from mmchat.training.config import RunConfig
from mmchat.training.dataloader import Feed
from mmchat.training.distributed import collectives
from mmchat.training.distributed.signals import StopSignals
from mmchat.training.distributed.zero3 import gathered
from mmchat.training.feature_cache.fill import Filler, Found, ImagePixels, SampleKeys, Together
from mmchat.training.monitoring.logger import resume_command
from mmchat.training.objectives.assistant import AssistantObjective
from mmchat.vision import TowerSpec, VisionTower

FORMAT = 1
"""Raised when images come to features in another way; older features are then computed anew."""
SAMPLES, IMAGES = 256, 32
"""How many a rank takes at a time: of samples whose images are read and named, of images that the towers run on."""


def fill_feature_cache(
    config: RunConfig,
    objective: AssistantObjective,
    feed: Feed,
    quarantine: Quarantine,
    signals: StopSignals,
    console: Console,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Compute what the cache lacks for this run, and let `objective` read features instead of running towers.

    All ranks call this, before the engine is built. Returns the exit status of a signal that stopped it, or 0.

    Raises:
        SharedError: a tower is trained, an image cannot be used and the policy is "stop", or there is no room.
    """
    towers, specs = objective.model.towers, objective.collator.specs
    views = "views" if objective.processor.image_processor.views_vary else "images"
    _refuse_trained(towers)
    mixtures, numbers = zip(*feed.samples(), strict=True)
    samples = np.array([(which, number) for which, of_one in enumerate(numbers) for number in of_one])
    with gathered(towers), signals:
        stores = collectives.from_rank_0(lambda: _opened(config, towers, specs, console.print))
        together, found = Together(config.workers, quarantine, signals), []
        looked_for = SampleKeys(mixtures, samples, specs[0])
        if status := together.take("looking for features", looked_for, SAMPLES, found.extend):
            return _stopped(status, config, console)
        wanted, lacking, images = _missing(found, stores)
        size = sum(store.record_bytes for store in stores)
        console.print(_told(config.objective.feature_cache, wanted, lacking, size, views), markup=False)
        if lacking:
            collectives.from_rank_0(lambda: _check_room(config.objective.feature_cache, lacking * size))
            begin = time.monotonic()
            filler = Filler(towers, stores, config.precision, shard_bytes)
            pixels = ImagePixels(mixtures, images, objective.processor.image_processor)
            status = together.take("features", pixels, IMAGES, filler.take, filler.flush)
            written, seconds = filler.written_by_all(), time.monotonic() - begin
            console.print(
                f"features of {written // size:,} {views} written, {written / 1e6:,.1f} MB in {seconds:,.1f} s "
                f"({written / size / seconds:,.1f} {views}/s)"
            )
            if status:
                return _stopped(status, config, console)
            stores = collectives.from_rank_0(lambda: [store.reopened() for store in stores])
    objective.features = ImageFeatures(stores, specs[0])
    return 0


def move_unused_towers(config: RunConfig, objective: AssistantObjective, device: torch.device | str) -> None:
    """Towers that no step runs need not be where the rest of the model is. Under ZeRO 3 they stay: a rank has only its
    share of them."""
    if objective.features is not None and config.distributed.zero_stage < 3:
        objective.model.towers.to(device)


def identity(tower: VisionTower, spec: TowerSpec, precision: str) -> dict[str, Any]:
    """All that features hang on, but for the image: with anything else they are kept elsewhere."""
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
            f"feature_cache keeps what towers make of images, which changes where they are trained: {trained[0]} is "
            f"({len(trained)} tensors in all); say `towers: frozen` in trainable, or leave feature_cache out"
        )


def _opened(
    config: RunConfig, towers: Iterable[VisionTower], specs: list[TowerSpec], tell: Callable[[str], None]
) -> list[FeatureStore]:
    """A store for each tower, in a folder named after its identity, where `tower.json` says what that is."""
    stores = []
    for tower, spec in zip(towers, specs, strict=True):
        values = identity(tower, spec, config.precision)
        name = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
        folder = config.objective.feature_cache / name
        try:
            write_json(folder / "tower.json", values)
            store = FeatureStore(folder, (spec.tokens, spec.dim), config.precision)
            remove_damaged_shards(store)
        except OSError as error:
            raise UserError(f"feature_cache {config.objective.feature_cache} cannot be used: {error}") from None
        for path in store.damaged:
            tell(f"{path} was damaged and is removed; its features are computed anew")
        stores.append(store)
    return stores


def _missing(found: list[Found], stores: list[FeatureStore]) -> tuple[int, int, np.ndarray]:
    """Of what all ranks found: how many keys there are, and how many without features; and where images with such
    views are, int64[n, 3]."""
    keys = key_array([key for key, *_ in found])
    places = np.array([place for _, *place in found], np.int64).reshape(-1, 3)
    parts = collectives.all_gather([(keys, places)])
    keys, first = np.unique(np.concatenate([part for part, _ in parts]), return_index=True)
    there = np.logical_and.reduce([store.has(keys) for store in stores])
    lacking = np.concatenate([part for _, part in parts])[first[~there]]
    return len(keys), len(lacking), np.unique(lacking, axis=0)


def _told(folder: Path, wanted: int, missing: int, size: int, views: str) -> str:
    line = f"feature cache {folder}: {wanted:,} {views}, {wanted - missing:,} of them there"
    return line + (f"; {missing:,} to compute, {missing * size / 1e6:,.1f} MB" if missing else "")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"feature_cache {folder} has no room: features take {needed / 1e6:,.1f} MB more, {free / 1e6:,.1f} MB are "
            "free. Make room, name another folder, or leave feature_cache out"
        )


def _stopped(status: int, config: RunConfig, console: Console) -> int:
    console.print(
        "stopped before the first step; features computed so far are kept\n"
        f"  go on with: {resume_command(config.run_dir)}",
        markup=False,
    )
    return status
