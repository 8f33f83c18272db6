"""Linear probes: the search of CLIP's protocol, features as the tower gives them, and the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mmchat.cli.main import main
from mmchat.errors import UserError
from mmchat.evaluation.probe import probe, raw_pixels, search, tower_features, tower_pixels
from mmchat.vision import normalise
from mmchat.vision.spec import Preprocessing

GRID = 10.0 ** (np.arange(97) / 8 - 6)


@pytest.mark.parametrize("peak", [0, 5, 48, 51, 90, 96])
def test_search_finds_the_best_of_all_without_trying_all(peak):
    tried = []

    def score(regularisation):
        tried.append(regularisation)
        return -abs(np.log(regularisation) - np.log(GRID[peak]))

    assert search(score) == pytest.approx(GRID[peak])
    assert len(tried) == len(set(tried)) <= 7 + 2 * 4
    assert {round(float(np.log10(each)), 3) for each in tried} >= {-6, -4, -2, 0, 2, 4, 6}


def test_of_equals_the_one_nearest_to_1():
    assert search(lambda regularisation: min(regularisation, 1)) == pytest.approx(1)
    assert search(lambda regularisation: -max(regularisation, 1)) == pytest.approx(1)
    assert search(lambda regularisation: min(regularisation, 100)) == pytest.approx(100)


@pytest.fixture
def blobs():
    """(train, test): three classes that overlap, in twelve dimensions."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 12))

    def draw(n):
        classes = np.arange(n) % 3
        return centres[classes] + rng.normal(0, 1.3, (n, 12)), classes

    return draw(120), draw(90)


def test_last_fit_takes_all_of_training_and_choosing_none_of_the_test(blobs):
    train, test = blobs
    result = probe("blobs", train, test)
    slow = LogisticRegression(C=1 / result.regularisation, max_iter=1000).fit(*train)
    assert result.accuracy == slow.score(*test)
    low, high = result.interval
    assert 0.5 < low < result.accuracy < high < 1
    # Other test labels change the score and nothing that was chosen.
    wrong = probe("blobs", train, (test[0], (test[1] + 1) % 3))
    assert wrong.regularisation == result.regularisation
    assert wrong.accuracy < 0.5


def test_one_image_of_a_class_is_too_few():
    with pytest.raises(UserError, match="two or more training images of each class"):
        probe("few", (np.eye(3), np.array([0, 0, 1])), (np.eye(3), np.array([0, 0, 1])))


def test_features_are_the_towers(make_tower, make_image):
    tower = make_tower()
    pixels = tower_pixels([make_image(seed) for seed in range(5)], tower.spec)
    values = torch.from_numpy(normalise(pixels, tower.spec))
    with torch.no_grad():
        theirs = tower.backbone(values)
        hidden = theirs.last_hidden_state[:, 1:]
    expected = {"pooled": theirs.pooler_output, "mean": hidden.mean(1), "max": hidden.amax(1)}
    for pool, features in expected.items():
        ours = tower_features(tower, pixels, pool, batch_size=2)
        torch.testing.assert_close(torch.from_numpy(ours), features, atol=2e-5, rtol=0)


@pytest.mark.parametrize("fit", ["tiles", "native", "longest-edge-pad"])
def test_images_that_are_no_whole_square_are_refused(make_tower, make_image, fit):
    spec = replace(make_tower().spec, preprocessing=Preprocessing(fit=fit))
    with pytest.raises(UserError, match=f"but the tower's fit is '{fit}'"):
        tower_pixels([make_image()], spec)


def test_grey_images_give_one_channel(make_image):
    colour = np.stack([np.asarray(make_image(seed)).transpose(2, 0, 1) for seed in range(2)])
    assert raw_pixels(colour).shape == (2, 3 * 22 * 30)
    grey = np.repeat(colour[:, :1], 3, axis=1)
    assert (raw_pixels(grey).reshape(2, 22, 30) == grey[:, 0].astype(np.float32) / 255).all()


@pytest.fixture
def folders(tmp_path, make_image):
    """train/ and test/ of two classes: images of noise, and the same much darker."""
    for split, seeds in (("train", range(8)), ("test", range(8, 12))):
        for label, scale in (("bright", 1.0), ("dark", 0.3)):
            (tmp_path / split / label).mkdir(parents=True)
            for seed in seeds:
                make_image(seed).point(lambda value, scale=scale: value * scale).save(
                    tmp_path / split / label / f"{seed}.png"
                )
    return tmp_path


def test_the_command_scores_towers_beside_what_needs_no_training(folders, make_tower, capsys):
    config = folders / "tower.json"
    config.write_text(json.dumps(make_tower().config.to_dict()))
    arguments = [
        "--train",
        str(folders / "train"),
        "--test",
        str(folders / "test"),
        "--json",
        str(folders / "scores.json"),
    ]
    other = folders / "other.json"
    other.write_text(json.dumps(make_tower(backbone={"intermediate_size": 48}).config.to_dict()))
    assert main(["clip", "probe", str(config), str(config), str(other), *arguments]) == 0
    assert "95 % interval" in capsys.readouterr().out
    rows = json.loads((folders / "scores.json").read_text())
    raw = "raw pixels, 28 x 28, shortest-edge-crop"
    # Of a baseline that two towers share there is one row.
    expected = [config, f"{config}, random weights", raw, config, other, f"{other}, random weights"]
    assert [row["features"] for row in rows] == list(map(str, expected))
    assert rows[0]["total"] == 8 and rows[2]["accuracy"] == 1.0
    (folders / "test" / "dark").rename(folders / "test" / "night")
    with pytest.raises(SystemExit) as stop:
        main(["clip", "probe", str(config), *arguments])
    assert stop.value.code == 2
    assert "have not the same classes: dark, night" in capsys.readouterr().err
