"""Dual encoders as transformers' own: it alone opens them and computes the same, or the export says what it cannot."""

import math
import re

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
)

from mmchat.cli.main import main
from mmchat.cli.push import kind_of, travelling_files
from mmchat.contrastive import export, load_clip
from mmchat.contrastive.captions import read_merges
from mmchat.contrastive.directory import init_clip, save_clip
from mmchat.contrastive.embedding import Embedder
from mmchat.front_matter import read_front_matter
from mmchat.vision import TowerConfig, build_tower
from mmchat.vision.spec import Preprocessing
from tests.clip_kinds import write_clip

TEXT = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 524}
TEXT |= {"bos_token_id": 522, "eos_token_id": 523, "pad_token_id": 523, "max_position_embeddings": 16}
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 16, "patch_size": 4}


@pytest.fixture(params=["clip", "siglip"])
def ours(request, tmp_path, merges_file):
    """A directory of ours, with tokenizer, whose temperature of a CLIP is above what CLIP allows."""
    torch.manual_seed(0)
    if request.param == "clip":
        model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=20))
    else:
        model = SiglipModel(SiglipConfig(text_config={**TEXT, "projection_size": 24}, vision_config=VISION))
    model.logit_scale.data.fill_(5.5)
    model.save_pretrained(tmp_path / "theirs")
    save_clip(load_clip(tmp_path / "theirs"), read_merges(merges_file), tmp_path / "ours")
    return tmp_path / "ours"


def test_mmchat_export_is_the_same(ours, tmp_path, capsys):
    for command, out in (("clip export", "one"), ("export --to hf", "two")):
        main([*command.split(), str(ours), "--out", str(tmp_path / out)])
    first, second = capsys.readouterr().out.split(str(tmp_path / "two"))
    assert first == str(tmp_path / "one") + second and "embeddings of an image and a text" in second
    written = [{path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("one", "two")]
    assert written[0] == written[1]


def test_the_card(ours, tmp_path, make_image, monkeypatch, capsys):
    (ours / "README.md").write_text("---\nlicense: mit\n---\n")
    main(["export", str(ours), "--to", "hf", "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "README.md").read_text()
    head = read_front_matter(tmp_path / "out" / "README.md")
    assert (head["library_name"], head["license"]) == ("transformers", "mit") and "at most 16 tokens" in text
    assert kind_of(tmp_path / "out")[0] == "exported model" and travelling_files(tmp_path / "out")
    make_image().save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found = {}
    exec(code.replace("path/of/this/directory", "out"), found)
    assert capsys.readouterr().out.splitlines()[-1].startswith("tensor([[")
    assert found["model"](**found["images"], **found["texts"]).logits_per_image.shape == (1, 2)


@pytest.mark.parametrize("arguments", [["--to", "gguf"], ["--to", "hf", "--known-reader-bug"], ["--to", "llava-hf"]])
def test_a_dual_encoder_has_one_format_and_no_option(arguments, tmp_path, make_tower, data_dir, capsys):
    tokenizer = data_dir / "tokenizers" / "llama_like_legacy_false"
    ours = write_clip(make_tower(), tokenizer, tmp_path / "ours")
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(ours), *arguments, "--out", str(tmp_path / "out")])
    expected = "has no option" if len(arguments) == 3 else "is a dual encoder, which is exported with `--to hf`"
    assert expected in capsys.readouterr().err and not (tmp_path / "out").exists()


@torch.no_grad()
def test_transformers_alone_computes_the_same(ours, tmp_path, make_image, capsys):
    main(["clip", "export", str(ours), "--out", str(tmp_path / "out")])
    embedder, texts = Embedder.open(ours), ["a dog", "words and words"]
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(model).__name__ in capsys.readouterr().out
    sigmoid = isinstance(model, SiglipModel)
    words, looks = (auto.from_pretrained(tmp_path / "out") for auto in (AutoTokenizer, AutoImageProcessor))
    images = [make_image(1).resize((40, 24)), make_image(2)]
    padding = {"padding": "max_length", "max_length": 16} if sigmoid else {"padding": True}
    inputs = words(texts, return_tensors="pt", **padding)
    mask = {} if sigmoid else {"attention_mask": inputs.attention_mask}
    found = model(inputs.input_ids, looks(images, return_tensors="pt").pixel_values, **mask)
    vectors, captions = (torch.from_numpy(of) for of in (embedder.images(images), embedder.texts(texts)))
    torch.testing.assert_close(F.normalize(found.image_embeds, dim=-1), vectors, atol=2e-5, rtol=0)
    torch.testing.assert_close(F.normalize(found.text_embeds, dim=-1), captions, atol=2e-5, rtol=0)
    scale = math.exp(5.5) if sigmoid else 100.0
    logits = scale * vectors @ captions.T + (model.logit_bias if sigmoid else 0)
    torch.testing.assert_close(found.logits_per_image, logits, atol=5e-3, rtol=0)

    first, again = (load_clip(path).state_dict() for path in (ours, tmp_path / "out"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first if key != "logit_scale")


def test_what_computes_something_else_is_never_called_written(ours, tmp_path, monkeypatch):
    honest = export._to_transformers

    def changed(model):
        written = honest(model)
        written.text_model.final_layer_norm.bias.data += torch.linspace(-1, 1, 24)
        return written

    monkeypatch.setattr(export, "_to_transformers", changed)
    with pytest.raises(RuntimeError, match="gives a text another vector"):
        main(["clip", "export", str(ours), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_every_reason_is_listed(tmp_path, data_dir, capsys):
    backbone = {**VISION, "stem_width": 8, "stem_depth": 1}
    tower = build_tower(TowerConfig("conv_vit", backbone, preprocessing=Preprocessing(fit="pad")))
    text = {key: value for key, value in TEXT.items() if not key.endswith("_id") and key != "vocab_size"}
    init_clip(tower, text, str(data_dir / "tokenizers" / "neox_like"), 20, "max", tmp_path / "ours", text_pool="mean")
    with pytest.raises(SystemExit, match="2"):
        main(["clip", "export", str(tmp_path / "ours"), "--out", str(tmp_path / "out")])
    message = capsys.readouterr().err
    for reason in (
        "its tower is 'conv_vit', expected 'clip_vit'",
        "its pool of patches is 'max', expected 'pooled'",
        "its pool of tokens is 'mean', expected 'last'",
        "its tower's fit is 'pad', expected squash or shortest-edge-crop",
        "its tokenizer does not add the special tokens itself",
    ):
        assert reason in message
    assert not (tmp_path / "out").exists()
