"""A tiny assistant and a tiny data set for tests that train: every third record has no picture, some have two."""

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "sun", "moon", "tree", "house"]


def write_records(folder: Path, count: int, text_only: bool = False) -> Path:
    """`count` records of different lengths in `folder`/records.json with their pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    records = []
    for number in range(count):
        images = 0 if text_only or number % 3 == 0 else 1 + (number % 4 == 1)
        names = [f"{number}-{i}.png" for i in range(images)]
        for i, name in enumerate(names):
            pixels = np.random.default_rng([number, i]).integers(0, 256, (24, 31, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        turns = []
        for turn in range(1 + number % 2):
            question = " ".join(rng.choices(WORDS, k=rng.randint(2, 6)))
            turns.append({"from": "human", "value": ("<image>\n" * images if turn == 0 else "") + question})
            turns.append({"from": "gpt", "value": " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))})
        records.append({"id": f"r{number}", "image": names, "conversations": turns})
    path = folder / "records.json"
    path.write_text(json.dumps(records))
    return path


def run_values(folder: Path, model: Path, data: Path, **changes) -> dict:
    """A run config over them; fp32 so that differences mean something."""
    values = {
        "run_dir": str(folder / "run"),
        "model": str(model),
        "data": {"path": str(data), "max_length": 400},
        "trainable": {"towers": "full", "projectors": {"mode": "full", "lr": 2e-3}, "language_model": "full"},
        "optimizer": {"lr": 1e-3, "warmup": 2, "weight_decay": 0.1},
        "steps": 4,
        "batch_size": 8,
        "precision": "fp32",
        "workers": 0,
        "checkpoint": {"every": 1000},
    }
    return values | changes
