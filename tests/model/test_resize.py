"""`mmchat resize`: the same weights and an updated processor for another image size."""

import pytest
import torch

from mmchat.cli.main import main
from mmchat.model.directory import load_assistant, save_assistant


def resize(source, out, *sizes, options=()):
    argv = [argument for size in sizes for argument in ("--image-size", str(size))]
    main(["resize", str(source), "--out", str(out), *argv, *options])
    return load_assistant(out)


@torch.no_grad()
def test_larger_images(assistant_dir, tmp_path, make_image, capsys):
    before, _ = load_assistant(assistant_dir)
    model, processor = resize(assistant_dir, tmp_path / "out", 42)
    assert "sees 42 x 42 pixels, 36 slots per view" in capsys.readouterr().out
    rendered = processor.render([{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}])
    inputs = {"input_ids": torch.tensor([rendered.input_ids]), **processor.image_processor([make_image()])}
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 36
    assert inputs["pixel_values"].shape == (1, 3, 42, 42)
    tower = before.towers[0].resized(42)
    expected = before.projectors[0](tower(inputs["pixel_values"]).patches)
    torch.testing.assert_close(model.get_image_features(inputs["pixel_values"]), expected, atol=1e-6, rtol=0)
    kept = before.language_model.state_dict()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in model.language_model.state_dict().items())
    assert model(**inputs).logits.isfinite().all()


def test_the_same_size_is_the_same_model(assistant_dir, tmp_path):
    before, after = load_assistant(assistant_dir)[0], resize(assistant_dir, tmp_path / "out", 28)[0]
    states = before.state_dict(), after.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


@torch.no_grad()
def test_kept_positions(assistant_dir, tmp_path):
    """Positions inside the old grid are the old ones. Below and to the right, the nearest is repeated."""
    before = load_assistant(assistant_dir)[0].towers[0]
    after = resize(assistant_dir, tmp_path / "out", 42, options=["--keep-positions"])[0].towers[0]
    old, new = (tower.backbone.state_dict()[tower.position_table] for tower in (before, after))
    first = len(old) - 16
    assert torch.equal(new[:first], old[:first])
    for row in range(6):
        for column in range(6):
            nearest = old[first + min(row, 3) * 4 + min(column, 3)]
            assert torch.equal(new[first + row * 6 + column], nearest), (row, column)


@pytest.mark.parametrize(
    ("projector", "sizes", "message"),
    [
        ("pixel_shuffle_2d", [56], "projector pixel_shuffle_2d has parameters per patch"),
        ("linear", [30], "30"),
        ("linear", [28, 28], "--image-size is given 2 times for 1 vision towers"),
    ],
)
def test_models_that_cannot_be_resized(make_assistant, tmp_path, projector, sizes, message, capsys):
    save_assistant(*make_assistant(projector=projector), tmp_path / "in")
    with pytest.raises(SystemExit, match="2"):
        resize(tmp_path / "in", tmp_path / "out", *sizes)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_towers_fused_on_channels_keep_equal_numbers(make_assistant, make_tower, tmp_path, capsys):
    save_assistant(*make_assistant(towers=[make_tower(), make_tower(1)]), tmp_path / "in")
    with pytest.raises(SystemExit, match="2"):
        resize(tmp_path / "in", tmp_path / "out", 28, 42)
    assert "must give equally many tokens, found [16, 36]" in capsys.readouterr().err
    model, _ = resize(tmp_path / "in", tmp_path / "out", 42)
    assert [spec.image_size for spec in model.specs] == [42, 42] and model.image_tokens == 36
