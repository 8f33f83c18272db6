"""Runs whose images have a number of views that depends on their size: cut in some way, or at their native aspect."""

from pathlib import Path

from mmchat.settings import validate
from mmchat.training.config import RunConfig
from mmchat.vision import AnyRes, Split, Tiling
from mmchat.vision.spec import Preprocessing
from tests.training_fixtures import run_values, write_mixture

TILES = Preprocessing(fit="tiles", tiling=Tiling(max_tiles=4))
CUTS = {
    "tiles": TILES,
    "anyres": Preprocessing(fit="anyres"),
    "onevision": Preprocessing(fit="anyres", tiling=AnyRes(((1, 1), (1, 2), (2, 1), (3, 1)), 2, True)),
    "split": Preprocessing(fit="split", tiling=Split(56)),
}
"""Preprocessing of towers of squares of 28 pixels."""
SIZES = ((60, 28), (31, 24), (30, 95))
"""3, 1 and 4 views in tiles of 28; natively 10, 12 and 12 patches in grids of 2 x 5, 3 x 4 and 6 x 2."""


def run_over_sizes(folder: Path, model: Path, monkeypatch):
    """`make(**changes)`: a run over a mixture of three storages, with images of these sizes."""
    monkeypatch.setenv("MMCHAT_CACHE", str(folder / "cache"))
    values = run_values(folder, model, write_mixture(folder / "data", 12, SIZES), steps=2, batch_size=6)
    return lambda **changes: validate(RunConfig, values | changes, "test")
