"""Export in LLaVA's original layout: the files of the original bit for bit, and what it cannot express."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoTokenizer, CLIPVisionModel

from mmchat.cli.main import main
from mmchat.conversation import SlotTokens
from mmchat.conversion import export_model, import_model
from mmchat.conversion.formats import llava_original_export
from mmchat.conversion.formats.llava_original_export import LlavaOriginalTarget
from mmchat.files import read_json
from mmchat.model.config import MMChatConfig
from mmchat.model.directory import save_assistant

TOWER = "model.vision_tower.vision_tower."
BARE = SlotTokens("<imgpad>").to_dict()


@pytest.fixture(scope="module")
def imported(data_dir, tmp_path_factory):
    """(the original's directory, its import as a model directory)."""
    folder = tmp_path_factory.mktemp("oracle")
    shutil.copytree(data_dir / "tokenizers" / "llama_like_legacy_false", folder / "llava")
    shutil.copytree(data_dir / "clip_vit_tiny_hf4", folder / "clip_vit_tiny_hf4")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(data_dir / "llava_original_full" / name, folder / "llava")
    save_assistant(*import_model(folder / "llava"), folder / "ours")
    return folder / "llava", folder / "ours"


def test_what_was_imported_is_exported_bit_for_bit(imported, make_image, tmp_path, capsys):
    original, ours = imported
    assert main(["export", str(ours), "--to", "llava", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "equal token ids" in out and "NOT opened by the original program" in out and "--conv-mode v1" in out
    expected, found = (load_file(folder / "model.safetensors") for folder in (original, tmp_path / "out"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, found[key]) and tensor.dtype == found[key].dtype for key, tensor in expected.items())

    stated, values = (read_json(folder / "config.json") for folder in (original, tmp_path / "out"))
    assert values["mm_vision_tower"] == "vision_tower"
    names = {key for key in stated if key.startswith(("mm_", "num_", "hidden_", "rope_", "image_"))} - {
        "mm_vision_tower"
    }
    names |= {"model_type", "architectures", "vocab_size", "intermediate_size", "torch_dtype", "tie_word_embeddings"}
    names &= stated.keys()
    assert len(names) > 15 and {key: values.get(key) for key in names} == {key: stated[key] for key in names}
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (original, tmp_path / "out")]
    text = "USER: \nWhat is <imgpad> this? ASSISTANT:</s>"
    assert len({tuple(tokenizer(text).input_ids) for tokenizer in tokenizers}) == 1
    assert len({len(tokenizer) for tokenizer in tokenizers}) == 1

    # llava/model/multimodal_encoder/clip_encoder.py opens the tower so.
    tower = CLIPVisionModel.from_pretrained(tmp_path / "out" / "vision_tower").state_dict()
    assert all(
        torch.equal(tower[key.removeprefix(f"{TOWER}vision_model.")], found[key]) for key in found if TOWER in key
    )
    images = AutoImageProcessor.from_pretrained(tmp_path / "out" / "vision_tower")
    square = make_image(width=90, height=90)
    pixels = import_model(tmp_path / "out")[1].image_processor([square])["pixel_values"]
    difference = images(square, return_tensors="pt")["pixel_values"] - pixels
    assert difference.abs().max() < 0.05


def test_trained_tokens_of_the_original_are_kept(imported, tmp_path):
    """A model with <im_patch>: all rows are the original's, and none is added or left out."""
    original, _ = imported
    source = shutil.copytree(original, tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["<im_patch>"], special_tokens=True)
    tokenizer.save_pretrained(source)
    state = load_file(source / "model.safetensors")
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        state[key] = torch.cat([state[key], torch.ones(1, 64)])
    save_file(state, source / "model.safetensors")
    tower = str(original.parent / "clip_vit_tiny_hf4")
    changes = {
        "mm_use_im_patch_token": True,
        "vocab_size": 1605,
        "image_aspect_ratio": "square",
        "mm_vision_tower": tower,
    }
    (source / "config.json").write_text(json.dumps(read_json(source / "config.json") | changes))
    save_assistant(*import_model(source, template="llama_2"), tmp_path / "ours")
    lines = export_model(tmp_path / "ours", "llava", tmp_path / "out")
    assert any("--conv-mode llava_llama_2" in line for line in lines)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == state.keys() and all(torch.equal(tensor, found[key]) for key, tensor in state.items())
    values = read_json(tmp_path / "out" / "config.json")
    assert {key: values[key] for key in changes} == {**changes, "mm_vision_tower": "vision_tower"}


@pytest.mark.parametrize(
    ("kind", "towers", "changes", "reason"),
    [
        ("llama", [{}, {}], {}, "it has 2 vision towers, expected one"),
        ("llama", [{"layer": (-2, -1)}], {}, "it takes the features of several layers"),
        ("llama", [{"final_norm": True}], {}, "its tower's last norm is applied"),
        ("llama", [{}], {"projectors": ["resampler4"]}, "its projector is resampler4, expected linear or mlp2x_gelu"),
        (
            "llama",
            [{}],
            {"slots": None},
            "its images stand between <img> and </img>, and the original writes <im_start>",
        ),
        ("llama", [{}], {"template": "chatml"}, "its template is chatml, expected vicuna_v1"),
        ("llama", [{}], {"system": "Mine."}, "its system message is its own"),
        ("qwen2", [{}], {}, "its language model is a qwen2, expected llama or mistral"),
    ],
    ids=["towers", "layers", "norm", "projector", "slots", "template", "system", "language"],
)
def test_refusals(make_tower, kind, towers, changes, reason):
    values = [make_tower(**settings).config.to_dict() for settings in towers]
    parts = {"projectors": ["linear"] * len(values), "slots": BARE, **changes}
    reasons = LlavaOriginalTarget().refusals(MMChatConfig({"model_type": kind}, values, **parts))
    assert len(reasons) == 1 and reason in reasons[0]


@pytest.mark.parametrize("part", ["fit", "rope"])
def test_a_file_that_computes_something_else_is_not_written(imported, tmp_path, monkeypatch, part):
    if part == "fit":
        monkeypatch.setitem(llava_original_export.ASPECT_RATIOS, "pad", "square")
    else:
        own = llava_original_export._language_values
        monkeypatch.setattr(llava_original_export, "_language_values", lambda *args: own(*args) | {"rope_theta": 10.0})
    with pytest.raises(RuntimeError, match="gives other logits"):
        export_model(imported[1], "llava", tmp_path / "out")
    assert not (tmp_path / "out").exists()
