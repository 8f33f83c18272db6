"""Native aspect: sizes, pixels, positions, features and gradients as transformers' SigLIP 2 has them."""

import json

import numpy as np
import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Siglip2VisionModel
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from mmchat.cli.main import main
from mmchat.errors import UserError
from mmchat.model.attention import use_fast_attention
from mmchat.vision import TowerConfig, TowerSpec, build_tower, load_tower, normalise, preprocess, refuse_unequal_views
from mmchat.vision.families import FAMILIES
from mmchat.vision.inspect import as_images, seen_views, write_images
from mmchat.vision.position_embeddings import resize_positions
from mmchat.vision.spec import HALF, Preprocessing
from mmchat.vision.transforms.native_aspect import native_size
from mmchat.vision.transforms.preprocess import image_from_patches

BACKBONE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 7,
    "num_patches": 16,
}
NATIVE = Preprocessing(HALF, HALF, "bilinear", "native", max_patches=12)
SIZES = ((60, 28), (31, 90), (40, 40), (60, 28), (400, 9))
sides = st.one_of(st.integers(1, 60), st.integers(1, 20_000))


def grid_of(width, height, patch, max_patches):
    """Rows and columns of the patches that transformers makes of an image."""
    processor = Siglip2ImageProcessorPil(patch_size=patch, max_num_patches=max_patches)
    pixels = np.zeros((height, width, 3), np.uint8)
    return processor(Image.fromarray(pixels), return_tensors="np")["spatial_shapes"][0].tolist()


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.sampled_from([4, 14, 16]), st.integers(1, 300))
def test_sizes(width, height, patch, max_patches):
    if width * height > 1_000_000:  # transformers makes the image
        width, height = max(1, width // 20), max(1, height // 20)
    rows, columns = grid_of(width, height, patch, max_patches)
    assert native_size(width, height, patch, max_patches) == (columns * patch, rows * patch)


def test_sizes_of_usual_images():
    assert native_size(640, 480, 16, 256) == (288, 224)
    assert native_size(480, 640, 16, 256) == (224, 288)
    assert native_size(4000, 10, 16, 256) == (4096, 16)
    assert native_size(500, 500, 16, 256) == (256, 256)


def triangle_weights(target, source=5):
    """The antialiased bilinear weights of one axis as in jax.image.scale_and_translate, which big_vision uses."""
    scale = source / target
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * scale - 0.5
    distances = (torch.arange(source, dtype=torch.float64) - centres[:, None]).abs() / max(scale, 1.0)
    weights = (1 - distances).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9))
@example(2, 1)
@example(1, 2)
def test_positions(rows, columns):
    table = torch.randn(25, 6, generator=torch.Generator().manual_seed(0))
    mine = resize_positions(table, 0, (rows, columns), "bilinear", antialias=True)
    weights = torch.einsum("ri,cj->rcij", triangle_weights(rows), triangle_weights(columns)).reshape(-1, 25)
    torch.testing.assert_close(mine, (weights @ table.double()).float(), atol=5e-6, rtol=0)
    # Before 5.24 transformers interpolates with torch, whose CPU kernel is wrong for one column.
    if columns == 1 and tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 24):
        return
    theirs = Siglip2VisionEmbeddings.resize_positional_embeddings(
        table.reshape(5, 5, 6), torch.tensor([[rows, columns]]), rows * columns
    )
    torch.testing.assert_close(mine, theirs[0], atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """(a directory that transformers wrote, its model, its image processor). No weight is at its first value."""
    torch.manual_seed(0)
    model = Siglip2VisionModel(Siglip2VisionModel.config_class(**BACKBONE)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    processor = Siglip2ImageProcessorPil(patch_size=7, max_num_patches=12)
    directory = tmp_path_factory.mktemp("siglip2")
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory, model, processor


def seen_by(tower, images):
    """(pixels, grids) for it."""
    views = np.concatenate([preprocess(image, tower.spec) for image in images])
    return torch.from_numpy(normalise(views, tower.spec)), [tower.spec.grid(image.size) for image in images]


@pytest.fixture
def images(make_image):
    return [make_image(seed, *size) for seed, size in enumerate(SIZES)]


def theirs(original, images, **how):
    """What transformers makes of them, and which of its patches are no padding."""
    _, model, processor = original
    inputs = processor(images, return_tensors="pt")
    return model(**inputs, **how), inputs["pixel_attention_mask"].bool()


def test_the_pixels_are_those_of_transformers(original, images):
    directory, _, processor = original
    tower = load_tower(directory)
    assert (tower.spec.preprocessing, tower.spec.tokens) == (NATIVE, 1)
    inputs = processor(images, return_tensors="pt")
    pixels, grids = seen_by(tower, images)
    assert grids == [tuple(shape) for shape in inputs["spatial_shapes"].tolist()]
    there = inputs["pixel_values"][inputs["pixel_attention_mask"].bool()]
    assert torch.equal(pixels.permute(0, 2, 3, 1).flatten(1), there)


ATTENTIONS = {
    "sdpa": lambda backbone: None,
    "ours": use_fast_attention,
    "eager": lambda backbone: backbone.set_attn_implementation("eager"),
}


@torch.no_grad()
@pytest.mark.parametrize("attention", sorted(ATTENTIONS))
@pytest.mark.parametrize("final_norm", [False, True])
def test_features(original, images, final_norm, attention):
    """Of several aspects in one batch, of each alone, and of all that are alike and so without padding."""
    directory, model, _ = original
    tower = load_tower(directory, layer=(0, 1, 2, -1), final_norm=final_norm).eval()
    ATTENTIONS[attention](tower.backbone)
    for some in (images, images[:1], images[::3], [images[0], images[4]]):
        expected, there = theirs(original, some, output_hidden_states=True)
        states = [model.post_layernorm(s) if final_norm else s for s in expected.hidden_states]
        pixels, grids = seen_by(tower, some)
        found = tower(pixels, pooled=True, grids=grids)
        assert found.patches.shape == (len(pixels), 1, tower.spec.dim)
        torch.testing.assert_close(found.patches[:, 0], torch.cat(states, dim=-1)[there], atol=2e-5, rtol=0)
        torch.testing.assert_close(found.pooled, expected.pooler_output, atol=2e-5, rtol=0)


def test_gradients(original, images):
    directory, model, _ = original
    tower = load_tower(directory).train()
    pixels, grids = seen_by(tower, images)
    weights = torch.randn(len(pixels), tower.spec.dim)
    (tower(pixels, grids=grids).patches[:, 0] * weights).sum().backward()
    model.zero_grad()
    expected, there = theirs(original, images, output_hidden_states=True)
    (expected.hidden_states[-1][there] * weights).sum().backward()
    idle = {id(parameter) for parameter in tower.idle_parameters()}
    originals = dict(model.named_parameters())
    for name, parameter in tower.backbone.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in idle), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, originals[name].grad, atol=2e-4, rtol=2e-4)


def test_grids_and_pixels_have_to_agree(original, images):
    tower = load_tower(original[0])
    pixels, grids = seen_by(tower, images)
    for wrong in (None, grids[1:]):
        with pytest.raises(ValueError, match=rf"was given {len(pixels)} views and grids of \d+ patches"):
            tower(pixels, grids=wrong)
    squares = load_tower(original[0], fit="squash")
    with pytest.raises(ValueError, match="of fit squash was given 2 views"):
        squares(torch.zeros(2, 3, 28, 28), grids=[(4, 4), (4, 4)])


def test_what_a_directory_becomes(original, tmp_path):
    directory = original[0]
    assert load_tower(directory, max_patches=5).spec.preprocessing.max_patches == 5
    assert load_tower(directory, fit="native").spec.preprocessing.max_patches == 12
    squares = load_tower(directory, fit="squash", image_size=35).spec
    assert (squares.image_size, squares.tokens, squares.views((60, 28)), squares.grid((60, 28))) == (35, 25, 1, None)
    for file in directory.glob("[cm]*"):
        (tmp_path / file.name).symlink_to(file)
    bare = load_tower(tmp_path)  # with no word of an image processor: as many patches as positions
    assert (bare.config.preprocessing.max_patches, bare.spec.preprocessing.max_patches) == (None, 16)
    with pytest.raises(UserError, match="a tower of fit native has no image size"):
        load_tower(directory, image_size=28)
    with pytest.raises(UserError, match="has max_patches, but its fit is 'squash'"):
        load_tower(directory, fit="squash", max_patches=5)


def test_specs():
    tower = build_tower(TowerConfig("siglip2", BACKBONE, preprocessing=NATIVE))
    assert TowerSpec.from_dict(tower.spec.to_dict()) == tower.spec
    assert TowerConfig.from_dict(tower.config.to_dict()) == tower.config
    for width, height in SIZES:
        rows, columns = grid_of(width, height, 7, 12)
        assert tower.spec.grid((width, height)) == (rows, columns)
        assert tower.spec.views((width, height)) == rows * columns
    assert build_tower(TowerConfig("siglip2", BACKBONE)).spec.grid((60, 28)) is None
    with pytest.raises(UserError, match="max_patches is 0; expected a whole number from 1"):
        Preprocessing(fit="native", max_patches=0)
    with pytest.raises(UserError, match="a tower of fit native must be the only one, found native, native"):
        refuse_unequal_views([tower.spec, tower.spec])
    refuse_unequal_views([tower.spec])


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"siglip2"}))
def test_other_families_see_squares(family):
    with pytest.raises(UserError, match=f"which is siglip2; found {family}, which sees squares"):
        build_tower(TowerConfig(family, {}, preprocessing=NATIVE))


def test_patches_put_together(make_image, tmp_path):
    tower = build_tower(TowerConfig("siglip2", BACKBONE, layer=0, preprocessing=NATIVE))
    wide = make_image(0, 60, 28)
    whole = image_from_patches(preprocess(wide, tower.spec), tower.spec.grid(wide.size))
    expected = np.asarray(wide.resize((5 * 7, 2 * 7), Image.Resampling.BILINEAR))
    assert np.array_equal(whole.transpose(1, 2, 0), expected)
    (shown,) = as_images(seen_views(wide, tower.spec), NATIVE)
    assert np.array_equal(np.asarray(shown), expected)
    paths = write_images(tower, wide, tmp_path)
    sizes = [Image.open(path).size for path in paths]
    assert sizes[0] == sizes[1] == (455, 182)  # 13 times 35 x 14
    assert np.array_equal(np.asarray(Image.open(paths[0]))[::13, ::13], expected)
    patches = np.asarray(Image.open(paths[1])).reshape(2, 91, 5, 91, 3)
    assert (patches == patches[:, :1, :, :1]).all() and len(np.unique(patches[:, 0, :, 0].reshape(10, 3), axis=0)) > 8


def test_inspect_says_so(original, capsys, tmp_path):
    main(["vision", "inspect", str(original[0]), "--json", str(tmp_path / "figures.json")])
    out = capsys.readouterr().out
    assert "of any proportions, at most 12 patches of 7 pixels" in out and "1 token for each patch, 32 wide" in out
    assert "resized to nearly 12 patches" in out
    assert json.loads((tmp_path / "figures.json").read_text())["preprocessing"]["max_patches"] == 12
