"""`mmchat vision inspect`: true figures, the very pixels that a tower sees, colours that follow its features."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmchat.cli.main import main
from mmchat.vision import load_tower, preprocess
from mmchat.vision.inspect import (
    FIT_DESCRIPTIONS,
    as_colours,
    as_images,
    describe,
    inspect_tower,
    principal_components,
    seen_views,
    write_images,
)
from mmchat.vision.spec import FITS, Preprocessing


@pytest.fixture
def run(capsys):
    """run(*words) -> (exit status, stdout, stderr)"""

    def run(*words):
        try:
            status = main(["vision", "inspect", *map(str, words)])
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def halves(tmp_path):
    """An image that is dark on the left and bright on the right."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 255
    path = tmp_path / "halves.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def conv_tower(make_tower):
    """A tower whose features are local and know no place, and so follow the image whatever its weights."""
    backbone = {"image_size": 32, "patch_size": 4, "stem_width": 8, "stem_depth": 1}
    tower = make_tower(family="conv_vit", backbone=backbone, layer=0)
    with torch.no_grad():
        tower.backbone.embeddings.position_embedding.weight.zero_()
    return tower


def test_figures_of_a_directory(data_dir, tmp_path):
    source = shutil.copytree(data_dir / "clip_vit_tiny_hf4", tmp_path / "tower")
    weights = load_file(source / "model.safetensors")
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in weights.items()}
    save_file(half, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    found = inspect_tower(str(source), load_tower(source, layer=-2, class_token=True))
    whole = sum(tensor.numel() for key, tensor in weights.items() if not key.endswith("position_ids"))
    unused = ("vision_model.encoder.layers.3.", "vision_model.post_layernorm.")
    idle = sum(tensor.numel() for key, tensor in weights.items() if key.startswith(unused))
    assert (found.parameters, found.parameters_run) == (whole, whole - idle)
    assert (found.format, found.family, found.dtypes) == ("Hugging Face directory", "clip_vit", ("float16",))
    assert (found.image_size, found.patch_size, found.tokens, found.width) == (28, 7, 17, 64)
    assert (found.layer, found.blocks, found.blocks_run, found.class_token) == (-2, 4, 3, True)


def test_the_command_prints_them_and_writes_them_for_machines(run, data_dir, tmp_path):
    source = data_dir / "clip_vit_tiny_hf4"
    status, out, _ = run(source, "--layer=-2,-3", "--image-size", 56, "--json", tmp_path / "figures.json")
    assert status == 0
    text = " ".join(out.split())
    for told in ("Hugging Face directory", "56 x 56 pixels, 8 x 8 patches of 7", "64 tokens, 128 wide", "-2, -3 (of 4"):
        assert told in text
    values = json.loads((tmp_path / "figures.json").read_text())
    assert (values["tokens"], values["width"], values["layer"], values["blocks_run"]) == (64, 128, [-2, -3], 3)
    assert values["preprocessing"]["fit"] == "shortest-edge-crop"


def test_every_fit_has_a_description():
    assert set(FIT_DESCRIPTIONS) == set(FITS)
    pad = Preprocessing((0.5, 0.25, 0.125), (1, 1, 2), "bilinear", "pad")
    assert describe(pad, 56) == [
        "padded to a square with the mean colour, then resized to 56 x 56 (bilinear)",
        "red, green, blue from 0 to 1, minus 0.5, 0.25, 0.125, divided by 1, 1, 2",
    ]


@pytest.mark.parametrize("fit", sorted(set(FITS) - {"native"}))
def test_what_is_shown_is_what_the_tower_gets(make_tower, make_image, fit):
    spec = make_tower(preprocessing=Preprocessing(fit=fit)).spec
    pixels = preprocess(make_image(), spec)
    height, width = pixels.shape[-2:]
    views = pixels.reshape(-1, 3, height, width)
    for shown, view in zip(as_images(seen_views(make_image(), spec), spec.preprocessing), views, strict=True):
        assert shown.size == (spec.image_size, spec.image_size)
        assert np.array_equal(np.asarray(shown).transpose(2, 0, 1)[:, :height, :width], view)


def test_components_are_those_of_the_covariance():
    torch.manual_seed(0)
    features = torch.randn(2, 4, 4, 6) * torch.tensor([1.0, 5, 2, 9, 0.5, 3])
    found, share = principal_components(features)
    rows = features.double().flatten(0, 2)
    variances, directions = torch.linalg.eigh((rows - rows.mean(0)).T @ (rows - rows.mean(0)))
    directions = directions.flip(1)[:, :3]
    directions *= directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    torch.testing.assert_close(found, ((rows - rows.mean(0)) @ directions).view(2, 4, 4, 3))
    assert share == pytest.approx((variances[-3:].sum() / variances.sum()).item())
    # Fewer than three are there to be found.
    flat = torch.outer(torch.arange(16.0), torch.ones(2)).view(1, 4, 4, 2)
    found, share = principal_components(flat)
    assert share == pytest.approx(1) and found[..., 1:].abs().max() < 1e-9 < found[..., 0].abs().max()
    assert principal_components(torch.ones(1, 2, 2, 5))[1] == 0


def test_an_outlier_does_not_leave_the_others_grey():
    components = torch.linspace(-1, 1, 400, dtype=torch.float64).view(1, 20, 20, 1).repeat(1, 1, 1, 3)
    components[0, 0, 0] = 1000
    colours = as_colours(components)
    assert colours[0, 0, 0].tolist() == [255] * 3
    assert colours[0, 1].max() < 40 and colours[0, -1].min() > 215


def test_images(conv_tower, halves, tmp_path):
    paths = write_images(conv_tower, Image.open(halves), tmp_path / "shown")
    assert [path.name for path in paths] == ["seen.png", "features.png", "inspect.png"]
    seen, features, both = map(Image.open, paths)
    assert seen.size == features.size == (448, 448)  # 14 times 32
    expected = preprocess(Image.open(halves), conv_tower.spec).reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(np.asarray(seen)[::14, ::14], expected)
    patches = np.asarray(features).reshape(8, 56, 8, 56, 3).astype(int)
    assert (patches == patches[:, :1, :, :1]).all()
    inside = patches[2:-2, 0, :, 0]  # convolutions see the image's edge
    assert np.ptp(inside, axis=0).max() < 8  # no row is another
    assert abs(inside[:, :4].mean(axis=(0, 1)) - inside[:, 4:].mean(axis=(0, 1))).max() > 100
    page = np.asarray(both)
    for left, part in ((8, seen), (8 + 448 + 8, features)):
        assert np.array_equal(page[28 : 28 + 448, left : left + 448], np.asarray(part))
    assert page[:28].min() < 64  # captions


def test_several_views_lie_in_a_block(conv_tower, halves, tmp_path):
    conv_tower.set_fit("tiles")
    wide = Image.open(halves).resize((64, 32), Image.Resampling.NEAREST)
    seen, features = (np.asarray(Image.open(path)) for path in write_images(conv_tower, wide, tmp_path)[:2])
    assert seen.shape == features.shape == (448 * 2 + 8, 448 * 2 + 8, 3)
    dark, bright, thumbnail = seen[:448, :400], seen[:448, 504:], seen[456:, :448]  # but for the edge between them
    assert not dark.any() and (bright == 255).all()
    assert not thumbnail[:, :176].any() and (thumbnail[:, 272:] == 255).all()
    assert (seen[456:, 456:] == 255).all() and (features[456:, 456:] == 255).all()


def test_the_class_token_is_no_patch(data_dir, halves, tmp_path):
    written = []
    for keeps in (True, False):
        tower = load_tower(data_dir / "clip_vit_tiny_hf4", class_token=keeps)
        written.append(write_images(tower, Image.open(halves), tmp_path / str(keeps))[1].read_bytes())
    assert written[0] == written[1]


def test_the_command_names_what_it_wrote(run, data_dir, halves, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(data_dir / "clip_vit_tiny_hf4", "--image", halves)
    assert status == 0 and out.split()[-3:] == [f"halves.inspect/{n}.png" for n in ("seen", "features", "inspect")]
    assert all((tmp_path / path).stat().st_size for path in out.split()[-3:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x"], "name one with --image"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--image-size", "30"], "not a multiple of patch size 7"),
        (["--layer", "9"], "feature layer 9 does not exist"),
    ],
)
def test_mistakes(run, data_dir, words, message):
    status, out, err = run(data_dir / "clip_vit_tiny_hf4", *words)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1
