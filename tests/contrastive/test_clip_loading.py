"""Whole CLIPs and SigLIPs as others publish them: opened strictly, with the originals' features and logits."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from mmchat.cli.main import main
from mmchat.contrastive import DualEncoder, load_clip, load_tokenizer
from mmchat.contrastive.text_formats import clip_config, clip_state
from mmchat.errors import UserError
from mmchat.vision.checkpoint_formats.openai import OpenAI
from tests.vision import slow_clip
from tests.vision.test_clip_layouts import RELEASED, original_shapes

FEATURES, LOGITS = 2e-5, 1e-4
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 16, "patch_size": 4}


@pytest.fixture(scope="module")
def oracle(data_dir):
    return data_dir / "openai_clip" / "vit_tiny.state.safetensors"


@pytest.fixture(scope="module")
def variants(data_dir):
    return json.loads((data_dir / "openai_clip" / "variants.json").read_text())


def ids_with_ends(vocabulary, lengths, width, pad=0):
    """int[B, L] whose rows end with the largest id, and their mask."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, vocabulary - 2, (len(lengths), width), generator=generator)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = vocabulary - 1
    return ids.masked_fill(~mask, pad), mask.long()


def images(size, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(4))


def assert_alike(found, expected, tolerance=FEATURES):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@torch.no_grad()
def assert_computes(model, pixels, ids, mask, image_features, text_features, logits):
    """The features of references are not normalised."""
    images, texts, scale, *bias = model.eval()(pixels, ids, mask)
    assert_alike(images, F.normalize(image_features, dim=-1))
    assert_alike(texts, F.normalize(text_features, dim=-1))
    assert_alike(scale * images @ texts.T + sum(bias), logits, LOGITS)


# OpenAI


@pytest.mark.parametrize("wrapped", [False, True])
def test_openai(oracle, data_dir, tmp_path, wrapped):
    source = oracle
    if wrapped:
        source = tmp_path / "weights.pt"
        torch.save({"state_dict": load_file(oracle)}, source)
    io = load_file(data_dir / "openai_clip" / "vit_tiny.io.safetensors")
    mask = torch.arange(io["text"].shape[1]) <= io["text"].argmax(dim=1)[:, None]
    model = load_clip(source)
    expected = io["image_features"], io["text_features"], io["logits_per_image"]
    assert_computes(model, io["image"], io["text"], mask.long(), *expected)
    text = model.config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.hidden_act) == (98, 99, "quick_gelu")
    assert model.config.context_length == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ln_final.bias": None}, r"missing: text_encoder\.final_layer_norm\.bias$"),
        ({"logit_scale": None}, r"missing: logit_scale$"),
        ({"visual.proj": None}, r"missing: image_projection\.weight$"),
        ({"visual.ln_post.bias": None}, r"missing: towers\.0\.backbone\.post_layernorm\.bias$"),
        ({"logit_bias": torch.zeros(1)}, r"left over: logit_bias, towers\.0\.backbone\.logit_bias$"),
        ({"ln_final.gain": torch.zeros(2)}, r"left over: text_encoder\.final_layer_norm\.gain$"),
        ({"stray": torch.zeros(2)}, r"left over: towers\.0\.backbone\.stray$"),
        ({"text_projection": torch.zeros(63, 32)}, r"of another shape: text_projection\.weight \(32, 63\)"),
        ({"text_projection": None}, r"missing: text_projection$"),
    ],
)  # fmt: skip
def test_openai_strictness(oracle, tmp_path, change, message):
    state = {k: v for k, v in (load_file(oracle) | change).items() if v is not None}
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=message):
        load_clip(tmp_path / "weights.safetensors")


class Shapes:
    """A source whose tensors have shapes only."""

    def __init__(self, shapes):
        self.path, self.shapes = "there", shapes

    def tensors(self):
        return {key: torch.empty(shape) for key, shape in self.shapes.items()}


@pytest.mark.parametrize("name", RELEASED)
def test_released_variants_key_by_key(variants, name):
    config = variants[name]["config"]
    with torch.device("meta"):
        source = Shapes(original_shapes(config))
        tower = OpenAI().open(source, weights=True)
        ours = DualEncoder(clip_config(source, tower, {"hidden_act": "quick_gelu"}))
        filled = clip_state(source.tensors(), tower)
    assert {key: tensor.shape for key, tensor in filled.items()} == {
        key: tensor.shape for key, tensor in ours.state_dict().items()
    }
    assert ours.config.projection_dim == config["embed_dim"]
    text = ours.config.text_config
    sizes = text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.max_position_embeddings
    expected = ("transformer_width", "transformer_layers", "transformer_heads", "context_length")
    assert sizes == tuple(config[key] for key in expected)


# open_clip


def clip_reference(state, pixels, ids, activation, heads, text_heads):
    """Image and text features and logits of a CLIP under OpenAI's keys."""
    visual = {key.removeprefix("visual."): tensor for key, tensor in state.items() if key.startswith("visual.")}
    image = slow_clip.vit(visual, pixels, heads, activation)[1] @ state["visual.proj"]
    normed = slow_clip.text(state, ids, text_heads, activation, causal=True)
    text = normed[torch.arange(len(ids)), ids.argmax(dim=1)] @ state["text_projection"]
    scale = state["logit_scale"].exp()
    return image, text, scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("prefix", ["", "text."])
def test_open_clip(tmp_path, prefix, quick_gelu):
    state = {f"visual.{k}": v for k, v in slow_clip.random_state(slow_clip.vit_shapes(40, 2, 4, 16)).items()}
    state |= slow_clip.random_state(slow_clip.text_shapes(48, 2, 12, 60, 20) | {"visual.proj": (40, 20)}, seed=1)
    ours = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    save_file({f"{prefix}{k}" if k.startswith(ours) else k: v for k, v in state.items()}, tmp_path / "m.safetensors")
    model = {
        "embed_dim": 20,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 40, "head_width": 10, "patch_size": 4},
        "text_cfg": {"context_length": 12, "vocab_size": 60, "width": 48, "heads": 3, "layers": 2},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    activation = slow_clip.quick_gelu if quick_gelu else F.gelu
    pixels, (ids, mask) = images(16), ids_with_ends(60, (5, 12, 7), 12)
    expected = clip_reference(state, pixels, ids, activation, heads=4, text_heads=3)
    assert_computes(load_clip(tmp_path), pixels, ids, mask, *expected)

    model["text_cfg"]["no_causal_mask"] = True
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    with pytest.raises(UserError, match=r"text_cfg \{'no_causal_mask': True\}, which no text encoder here supports"):
        load_clip(tmp_path)


@torch.no_grad()
def test_open_clip_siglip(tmp_path):
    width = 768
    tower = slow_clip.random_state(slow_clip.siglip_shapes(width, 64, 1, 16, 32))
    shapes = slow_clip.text_shapes(width, 1, 8, 60, 1)
    del shapes["text_projection"]
    shapes |= slow_clip.linear("text_projection.", width, width)
    text = slow_clip.random_state(shapes, seed=1)
    scale, bias = text.pop("logit_scale").reshape(1).abs() + 4.7, torch.full((1,), -12.0)
    state = {f"visual.trunk.{k}": v for k, v in tower.items()} | {f"text.{k}": v for k, v in text.items()}
    save_file(state | {"logit_scale": scale, "logit_bias": bias}, tmp_path / "m.safetensors")
    pixels, (ids, mask) = images(32), ids_with_ends(60, (3, 8, 6), 8, pad=1)
    image = slow_clip.siglip(tower, pixels, 12)[1]
    hidden = slow_clip.text(text, ids, 12, lambda x: F.gelu(x, approximate="tanh"), causal=False, eps=1e-6)
    feature = slow_clip.apply(text, "text_projection.", hidden[:, -1])
    logits = scale.exp() * F.normalize(image, dim=-1) @ F.normalize(feature, dim=-1).T + bias
    model = load_clip(tmp_path)
    assert_computes(model, pixels, ids, mask, image, feature, logits)
    # However far a batch is padded, and with whatever, the encoder sees its own padding up to the whole context.
    short = ids[:1, :4].masked_fill(mask[:1, :4] == 0, 7)
    assert_alike(model.encode_text(short, mask[:1, :4]), F.normalize(feature[:1], dim=-1))


# transformers


def shake(model):
    """Gains and biases that are not one and nothing, and positions that show."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 and "logit" not in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def prefixed_as_in_v4(directory):
    weights = load_file(directory / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module", params=["eos 59", "eos 2"])
def clip_directory(request, tmp_path_factory):
    """(transformers' own model, its directory); before 4.31 configs named no end token that was true."""
    torch.manual_seed(0)
    special = {"eos_token_id": int(request.param[4:]), "bos_token_id": 58, "pad_token_id": 59}
    text = {**TEXT, **special, "max_position_embeddings": 12}
    model = shake(CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=20)))
    directory = tmp_path_factory.mktemp("clip")
    model.save_pretrained(directory)
    return model, directory


def test_transformers_clip(clip_directory):
    theirs, directory = clip_directory
    pixels, (ids, mask) = images(16), ids_with_ends(60, (5, 12, 7), 12, pad=0)
    with torch.no_grad():
        expected = theirs(ids, pixels, mask)
    model = load_clip(directory)
    assert_computes(model, pixels, ids, mask, expected.image_embeds, expected.text_embeds, expected.logits_per_image)
    assert model.config.text_config.eos_token_id == 59


def test_transformers_clip_of_version_4(clip_directory, tmp_path):
    theirs, _ = clip_directory
    theirs.save_pretrained(tmp_path)
    prefixed_as_in_v4(tmp_path)
    pixels, (ids, mask) = images(16), ids_with_ends(60, (5,), 12)
    with torch.no_grad():
        assert_alike(load_clip(tmp_path)(pixels[:1], ids, mask)[1], theirs(ids, pixels[:1], mask).text_embeds)


def test_transformers_siglip(tmp_path):
    torch.manual_seed(0)
    text = {**TEXT, "hidden_size": 24, "num_attention_heads": 3, "max_position_embeddings": 8, "projection_size": 24}
    theirs = shake(SiglipModel(SiglipConfig(text_config={**text, "pad_token_id": 1}, vision_config=VISION)))
    theirs.logit_scale.data.fill_(4.9)
    theirs.logit_bias.data.fill_(-11.0)
    theirs.save_pretrained(tmp_path)
    pixels, (ids, mask) = images(16), ids_with_ends(60, (5, 8, 7), 8, pad=1)
    with torch.no_grad():
        expected = theirs(ids, pixels)
    model = load_clip(tmp_path)
    assert_computes(model, pixels, ids, mask, expected.image_embeds, expected.text_embeds, expected.logits_per_image)
    assert model.config.sigmoid


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_projection.weight": None}, r"missing: text_projection\.weight$"),
        ({"logit_scal": torch.zeros(1)}, r"left over: logit_scal$"),
        ({"text_model.final_layer_norm.bias": None}, r"missing: final_layer_norm\.bias$"),
        ({"stray": torch.zeros(1)}, r"left over: stray$"),
    ],
)
def test_transformers_strictness(clip_directory, tmp_path, change, message):
    theirs, _ = clip_directory
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors") | change
    weights = {key: tensor for key, tensor in weights.items() if tensor is not None}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        load_clip(tmp_path)


# What is none, and ours


def test_a_tower_is_no_dual_encoder(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"holds a 'clip_vision_model', which is no dual encoder; known: clip, siglip"):
        load_clip(data_dir / "clip_vit_tiny_hf4")
    with pytest.raises(UserError, match=r"dual encoder .*: no such directory"):
        load_clip(tmp_path / "nothing" / "there")


def test_converted(merges_file, tmp_path, capsys):
    """Another's archive and CLIP's vocabulary become a directory that a run starts from."""
    state = {f"visual.{k}": v for k, v in slow_clip.random_state(slow_clip.vit_shapes(64, 1, 4, 16)).items()}
    state |= slow_clip.random_state(slow_clip.text_shapes(64, 1, 12, 524, 20) | {"visual.proj": (64, 20)}, seed=1)
    torch.save(state, tmp_path / "clip.pt")
    words = ["clip", "convert", tmp_path / "clip.pt", "--tokenizer", merges_file, "--out", tmp_path / "ours"]
    main([str(word) for word in words])
    assert "524 tokens, texts of at most 12" in capsys.readouterr().out
    model, again = load_clip(tmp_path / "clip.pt"), load_clip(tmp_path / "ours")
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert len(load_tokenizer(tmp_path / "ours", again)) == 524
    assert {load_clip(tmp_path / one, dtype="bfloat16").dtype for one in ("clip.pt", "ours")} == {torch.bfloat16}

    del state["token_embedding.weight"]
    torch.save(state | {"token_embedding.weight": torch.zeros(530, 64)}, tmp_path / "clip.pt")
    words[-1] = tmp_path / "other"
    with pytest.raises(SystemExit, match="2"):
        main([str(word) for word in words])
    assert "it has 524 tokens, the text encoder 530" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
