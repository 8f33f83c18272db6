"""Set-up of Vary-tiny (SAM with a new compressor, OPT with a longer context), and reuse of its tower beside CLIP."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM

from mmchat.cli.main import main
from mmchat.files import read_json
from mmchat.model.assembly import extend_positions
from mmchat.model.directory import load_assistant
from mmchat.vision import load_tower
from tests.conftest import TOKENIZER_OF

OLD, NEW = 32, 94
"""Every third new position is an old one: 93 = 3 x 31."""


@pytest.fixture(scope="module")
def sam_file(data_dir, tmp_path_factory):
    """A file in Meta's format with the oracle's encoder."""
    state = load_file(data_dir / "vary_sam_tiny" / "state.safetensors")
    path = tmp_path_factory.mktemp("sam") / "sam_vit_b.pth"
    torch.save({f"image_encoder.{key}": tensor for key, tensor in state.items() if not key.startswith("net_")}, path)
    return path


@pytest.fixture(scope="module")
def init(sam_file, data_dir, language_json, tmp_path_factory):
    """init(out, *argv): `mmchat init` with the arguments of configs/vary/tiny.yaml and small parts."""
    parts = ["--language", language_json("opt", max_position_embeddings=OLD), "--vision", sam_file]
    parts += ["--tokenizer", data_dir / "tokenizers" / TOKENIZER_OF["opt"]]
    parts += ["--compressor", "--projector", "linear", "--template", "vary_opt"]

    def run(out, *argv):
        main([str(argument) for argument in ("init", *parts, *argv, "--out", out)])
        return out

    run.folder = tmp_path_factory.mktemp("tiny")
    return run


@pytest.fixture(scope="module")
def tiny(init):
    return init(init.folder / "model", "--max-positions", NEW)


def test_sam_gains_a_new_compressor(tiny, sam_file):
    model, processor = load_assistant(tiny)
    (tower,) = model.towers
    sam = load_tower(sam_file)
    assert (tower.config.family, tower.spec.tokens, tower.spec.dim) == ("vary_sam", 4, 128)
    assert (sam.spec.tokens, sam.spec.dim, sam.spec.preprocessing.fit) == (64, 32, "longest-edge-pad")
    assert tower.spec.preprocessing.fit == "squash"
    assert tower.spec == processor.image_processor.specs[0]
    for mine, same in zip(tower.backbone.parameters(), sam.backbone.parameters(), strict=True):
        assert torch.equal(mine, same)
    assert all(0 < convolution.weight.std() < 1 for convolution in tower.compressor)


def test_another_seed_is_another_compressor_and_another_fit_is_kept(init, tiny):
    other, _ = load_assistant(init(init.folder / "other", "--seed", "1", "--fit", "pad"))
    one, _ = load_assistant(tiny)
    assert not torch.equal(one.towers[0].compressor[0].weight, other.towers[0].compressor[0].weight)
    assert other.specs[0].preprocessing.fit == "pad"


def test_a_compressor_without_a_sam_is_refused(tiny, data_dir, language_json, capsys, tmp_path):
    argv = ["init", "--language", language_json("opt"), "--tokenizer", data_dir / "tokenizers" / "opt_like"]
    argv += ["--vision", data_dir / "clip_vit_tiny_hf4", "--compressor", "--out", tmp_path / "out"]
    with pytest.raises(SystemExit, match="2"):
        main([str(argument) for argument in argv])
    assert "--compressor needs a SAM tower; the towers are of families clip_vit" in capsys.readouterr().err


def opt(positions=OLD):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {**sizes, "word_embed_proj_dim": 16, "vocab_size": 50, "max_position_embeddings": positions}
    return OPTForCausalLM(OPTConfig(**config)).eval()


def test_positions_are_interpolated():
    model = opt()
    old = model.model.decoder.embed_positions.weight.detach().clone()
    extend_positions(model, NEW)
    new = model.model.decoder.embed_positions.weight.detach()
    assert new.shape == (NEW + 2, 16)
    torch.testing.assert_close(new[:2], old[:2], atol=0, rtol=0)  # rows that no position uses
    torch.testing.assert_close(new[2::3], old[2:], atol=1e-6, rtol=0)
    torch.testing.assert_close(new[3], old[2] * 2 / 3 + old[3] / 3, atol=1e-6, rtol=0)
    assert model.config.max_position_embeddings == NEW


def test_every_third_position_gives_the_old_hidden_states():
    short, long = opt(), opt()
    extend_positions(long, NEW)
    ids = torch.arange(5, 5 + OLD)[None]
    with torch.no_grad():
        expected = short(input_ids=ids).logits
        found = long(input_ids=ids, position_ids=torch.arange(0, NEW, 3)[None]).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_texts_may_be_longer_than_the_model_had_learned(tiny, init):
    model, _ = load_assistant(tiny)
    assert read_json(tiny / "config.json")["text_config"]["max_position_embeddings"] == NEW
    ids = torch.randint(5, 400, (1, OLD + 10), generator=torch.Generator().manual_seed(0))
    longer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), min_new_tokens=20, max_new_tokens=20)
    assert longer.shape == (1, OLD + 30)
    short, _ = load_assistant(init(init.folder / "short"))
    with pytest.raises(IndexError):
        short(input_ids=ids)


@pytest.mark.parametrize(
    ("kind", "positions", "message"),
    [
        ("opt", OLD - 1, "--max-positions is 31, but the model has 32 already"),
        ("llama", NEW, "found a llama; rotary"),
    ],
)
def test_positions_that_cannot_be_extended(make_assistant, kind, positions, message):
    model = opt() if kind == "opt" else make_assistant("llama")[0].language_model
    with pytest.raises(ValueError, match=message):
        extend_positions(model, positions)


def test_the_trained_tower_is_reused_beside_clip(tiny, data_dir, language_json, tmp_path):
    """The tower is taken from a model directory with `mmchat init --vision`."""
    parts = ["--language", language_json("qwen2"), "--tokenizer", data_dir / "tokenizers" / TOKENIZER_OF["qwen2"]]
    parts += ["--vision", data_dir / "clip_vit_tiny_hf4", "--layer", "-2", "--image-size", "28"]
    parts += ["--vision", tiny, "--layer", "-1", "--image-size", "256"]
    argv = [*parts, "--projector", "linear", "--template", "vary_qwen", "--out", tmp_path / "dual"]
    main([str(argument) for argument in ("init", *argv)])
    dual, processor = load_assistant(tmp_path / "dual")
    trained = load_assistant(tiny)[0].towers[0].resized(256)
    for mine, same in zip(dual.towers[1].parameters(), trained.parameters(), strict=True):
        assert torch.equal(mine, same)
    clip, vary = processor.image_processor.specs
    assert (clip.preprocessing.fit, vary.preprocessing.fit) == ("shortest-edge-crop", "squash")
    assert [projector.out_features for projector in dual.projectors] == [16, 16]
    assert (dual.config.fusion, dual.image_tokens, dual.towers[0].config.layer) == ("channels", 16, -2)
