"""Runs whose images have a number of views that depends on their size: in tiles, or at their native aspect."""

from pathlib import Path

from mmchat.settings import validate
from mmchat.training.config import RunConfig
from mmchat.vision import Tiling
from mmchat.vision.spec import Preprocessing
from tests.training_fixtures import run_values, write_mixture

TILES = Preprocessing(fit="tiles", tiling=Tiling(max_tiles=4))
SIZES = ((60, 28), (31, 24), (30, 95))
"""3, 1 and 4 views in tiles of 28; natively 10, 12 and 12 patches in grids of 2 x 5, 3 x 4 and 6 x 2."""


def run_over_sizes(folder: Path, model: Path, monkeypatch):
    """`make(**changes)`: a run over a mixture of three storages, with images of these sizes."""
    monkeypatch.setenv("MMCHAT_CACHE", str(folder / "cache"))
    values = run_values(folder, model, write_mixture(folder / "data", 12, SIZES), steps=2, batch_size=6)
    return lambda **changes: validate(RunConfig, values | changes, "test")
