"""A tiny assistant and a tiny data set for tests that train: every third record has no image, some have two."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmchat.data.quarantine import Quarantine
from mmchat.training.build_model import build_model
from mmchat.training.dataloader import TrainingDataLoader
from tests.data import storing

TOLERANCE = 1e-5
"""Largest difference of a gradient, relative to the largest entry of the same parameter's gradient."""

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "sun", "moon", "tree", "house"]


def write_records(
    folder: Path, count: int, images: int | None = None, sizes: Sequence[tuple[int, int]] = ((31, 24),)
) -> Path:
    """`count` records of different lengths in `folder`/records.json with their images, `images` of them each, of
    `sizes` (width and height) in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    records = []
    for number in range(count):
        image_count = (0 if number % 3 == 0 else 1 + (number % 4 == 1)) if images is None else images
        names = [f"{number}-{i}.png" for i in range(image_count)]
        for i, name in enumerate(names):
            width, height = sizes[(number + i) % len(sizes)]
            pixels = np.random.default_rng([number, i]).integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        turns = []
        for turn in range(1 + number % 2):
            question = " ".join(rng.choices(WORDS, k=rng.randint(2, 6)))
            turns.append({"from": "human", "value": ("<image>\n" * image_count if turn == 0 else "") + question})
            turns.append({"from": "gpt", "value": " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))})
        records.append({"id": f"r{number}", "image": names, "conversations": turns})
    path = folder / "records.json"
    path.write_text(json.dumps(records))
    return path


def write_mixture(folder: Path, count: int, sizes: Sequence[tuple[int, int]] = ((31, 24),)) -> dict:
    """The same records in three storages, as the `sources` of a run: a third each, and not equally often."""
    items = json.loads(write_records(folder, count, sizes=sizes).read_text())
    (folder / "shards").mkdir()
    third = count // 3
    storing.write_json(folder / "loose.json", items[:third])
    storing.write_tar(folder / "shards" / "0.tar", items[third : 2 * third], folder)
    storing.write_parquet(folder / "rest.parquet", items[2 * third :], folder)
    return {
        "loose": {"path": str(folder / "loose.json"), "max_turns": 1},
        "shards": {"path": str(folder / "shards"), "repeat": 2},
        "parquet": {"path": str(folder / "rest.parquet"), "repeat": 0.5},
    }


def run_values(folder: Path, model: Path, data: Path | dict, **changes) -> dict:
    """A run config over a data file, or over a mixture's sources; fp32 so that differences mean something."""
    chosen = {"sources": data} if isinstance(data, dict) else {"path": str(data)}
    values = {
        "run_dir": str(folder / "run"),
        "model": str(model),
        "data": {**chosen, "max_length": 400},
        "trainable": {"towers": "full", "projectors": {"mode": "full", "lr": 2e-3}, "language_model": "full"},
        "optimizer": {"lr": 1e-3, "warmup": 2, "weight_decay": 0.1},
        "steps": 4,
        "batch_size": 8,
        "precision": "fp32",
        "workers": 0,
        "checkpoint": {"every": 1000},
    }
    return values | changes


def opened(config):
    """(objective, dataloader) of a run config."""
    objective = build_model(config).objective
    return objective, TrainingDataLoader(
        config, objective, Quarantine(config.run_dir / "quarantine.jsonl", "stop", writes=False)
    )


def gradients(objective, batches):
    """Sum of losses over all supervised tokens, and every gradient of it."""
    model = objective.model
    model.zero_grad()
    terms = sum(map(objective.terms, batches))
    losses = [objective.loss_sum(model, batch, images_on_any_rank=True) / terms for batch in batches]
    sum(losses).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return sum(losses).item(), found


def assert_gradient_equal(found: torch.Tensor, expected: torch.Tensor, all_of_them: dict, name: str) -> None:
    """Args: all_of_them: expected gradients by parameter; name: of this one, after anything and ": "."""
    size = expected.abs().max()
    if name.endswith("k_proj.bias"):
        # Softmax does not see what is added to all keys, so but for rounding this gradient is zero.
        size = all_of_them[name.rpartition(": ")[2].replace("k_proj.bias", "k_proj.weight")].abs().max()
    assert (found - expected).abs().max() <= TOLERANCE * size, name
