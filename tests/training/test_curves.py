"""The image is drawn whatever a run holds, and shows what it holds."""

import warnings

import pytest
from matplotlib import pyplot as plt
from PIL import Image

from mmchat.training.monitoring.curves import draw_curves, moving_mean


def rows(count, **changes):
    made = []
    for step in range(1, count + 1):
        made.append(
            {
                "step": step,
                "loss": 1 / step,
                "grad_norm": 1 + step % 3,
                "images": 2,
                "seconds": 0.1,
                "tokens_per_second": 100.0 + step,
                "supervised_tokens_per_second": 10.0,
                "images_per_second": 5.0,
                "fill": 0.7,
                "mfu": 0.3,
                "data_wait": 0.01,
                "memory": 2**30 * step,
                **changes,
            }
        )
    return made


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """drawn(rows, height of the image) -> panel title -> label -> (steps, values) of the lines that are named."""

    def draw(values, height=1170):
        kept = []
        monkeypatch.setattr(plt, "close", kept.append)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw_curves(values, tmp_path / "curves.png", "a run")
        monkeypatch.undo()
        panels = {
            axes.get_title(loc="left"): {
                line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
                for line in axes.lines
                if not line.get_label().startswith("_")
            }
            for axes in kept[0].axes
        }
        plt.close(kept[0])
        with Image.open(tmp_path / "curves.png") as image:
            assert image.size == (1300, height)
        return panels

    return draw


def test_every_panel_has_its_lines(drawn):
    panels = drawn([*rows(3), {"step": 3, "validation_loss": 0.5}])
    assert {title: list(lines) for title, lines in panels.items()} == {
        "loss": ["training", "validation"],
        "gradient norm": ["whole"],
        "tokens": ["all", "supervised"],
        "images": ["images"],
        "utilisation": ["batch fill", "MFU", "data wait"],
        "memory": ["memory"],
    }
    assert panels["loss"]["validation"] == ([3], [0.5])
    assert panels["tokens"]["all"] == ([1, 2, 3], [101.0, 102.0, 103.0])
    assert panels["memory"]["memory"] == ([1, 2, 3], [1.0, 2.0, 3.0])  # GiB


def test_accuracies_have_a_panel_where_they_were_measured(drawn):
    scores = [{"step": step, "zero_shot_top1": step / 4, "zero_shot_mean_per_class": 0.5} for step in (1, 3)]
    panels = drawn([*rows(3), *scores, {"step": 3, "validation_loss": 0.1, "validation_top1": 1.0}], height=1950)
    assert panels["validation accuracy"] == {"top1": ([3], [1.0])}
    assert panels["zero-shot accuracy"] == {"top1": ([1, 3], [0.25, 0.75]), "mean per class": ([1, 3], [0.5, 0.5])}


@pytest.mark.parametrize("count", [0, 1, 100])
def test_any_number_of_rows(drawn, count):
    panels = drawn(rows(count))
    assert all(bool(lines) == bool(count) for lines in panels.values())


def test_skipped_steps_are_gaps_and_zeros_are_survived(drawn):
    values = [*rows(4), *rows(1, step=5, loss=0.0, grad_norm=0.0)]
    values[1] = {key: value for key, value in values[1].items() if key not in ("loss", "grad_norm")} | {"skipped": "x"}
    panels = drawn(values)
    assert panels["loss"]["training"][0] == [1, 3, 4, 5]
    assert panels["tokens"]["all"][0] == [1, 2, 3, 4, 5]


def test_no_images_and_unknown_utilisation(drawn):
    panels = drawn(rows(3, images=0, images_per_second=0.0, mfu=None))
    assert panels["images"] == {} and list(panels["utilisation"]) == ["batch fill", "data wait"]


def test_norms_of_modules_are_drawn_where_there_are_any(drawn):
    panels = drawn(rows(3, grad_norms={"towers": 0.5, "language_model": 0.2, "projectors": 0.1}))
    assert list(panels["gradient norm"]) == ["whole", "language_model", "projectors", "towers"]
    assert panels["gradient norm"]["towers"][1] == [0.5] * 3


def test_the_line_of_the_loss_neither_lags_nor_follows_the_noise(drawn):
    """A loss that falls to the end, with noise: the line is near the trend, the noise is mostly gone."""
    falls = [2 * 0.97**step for step in range(200)]
    noisy = [value * (1.2 if step % 2 else 0.8) for step, value in enumerate(falls)]
    line = moving_mean(noisy)
    middle = slice(10, -10)
    assert max(abs(one / other - 1) for one, other in zip(line[middle], falls[middle], strict=True)) < 0.1
    assert all(0.75 < one / other < 1.25 for one, other in zip(line, falls, strict=True))
    assert moving_mean([4.0, 2.0, 0.0]) == [4.0, 2.0, 0.0] and moving_mean([]) == []
    panels = drawn([*rows(1), *rows(1, step=2, loss=0.5), *rows(1, step=3, loss=0.25)])
    assert panels["loss"]["training"][1][-1] == 0.25
