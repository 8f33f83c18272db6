"""Assistants that cannot be opened: each reason is found in transformers' source, and each way in says it."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers.models.auto.configuration_auto import model_type_to_module_name

from mmchat.cli.main import main
from mmchat.conversion import import_model, unsupported
from mmchat.conversion.unsupported import UNSUPPORTED
from mmchat.errors import UserError
from mmchat.model.assembly import assemble
from mmchat.training.objectives.assistant import AssistantObjective
from mmchat.vision.directory import save_tower

EVIDENCE = {
    unsupported._MROPE: r"def get_rope_index|def get_vision_position_ids|mrope_section",
    unsupported._BOTH_WAYS: "block_sequence_ids",
    unsupported._CROSS_ATTENTION: "CrossAttention|is_cross_attention",
    unsupported._Q_FORMER: "QFormer",
    unsupported._LATENTS: "AriaCrossAttention|PerceiverResampler|latent_query",
    unsupported._ENCODER_DECODER: "get_encoder|EncoderDecoderCache|encoder_outputs",
    unsupported._VQ: "VQVAE",
    unsupported._PIXTRAL: 'model_type="pixtral"|PixtralRotaryEmbedding|PixtralVisionRotaryEmbedding',
    unsupported._ROTARY_TOWER: "VisionRotaryEmbedding",
    unsupported._TIMM: "timm",
    unsupported._GATED: r"self\.act\(gate\) \* x",
    unsupported._VIDEO: "VideoPooler|video_tower",
}
EVIDENCE_OF_ONE = {
    "deepseek_vl_hybrid": "high_res_vision_proj",
    "fuyu": r"vision_embed_tokens = nn\.Linear",
    "lfm2_vl": "spatial_shapes",
    "minicpmv4_6": "WindowAttentionMerger",
    "ovis2": "gumbel_softmax",
    "paligemma": "block_sequence_ids",
    "phi4_multimodal": "sub_img_feature_extensor",
    "vipllava": "projector_layernorm",
}
"""What transformers' modeling or configuration file of a type holds if the reason is true."""
MODULES = {"shieldgemma2": "gemma3", "pixtral": "pixtral"}
"""Types whose class is in another module: shieldgemma2 is a Gemma 3 (`modeling_auto.py`)."""


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_the_reason_is_in_the_source(model_type):
    module = MODULES.get(model_type, model_type_to_module_name(model_type))
    folder = Path(importlib.util.find_spec(f"transformers.models.{module}").origin).parent
    source = "".join(path.read_text() for path in sorted(folder.glob("modeling_*.py")))
    source += "".join(path.read_text() for path in sorted(folder.glob("configuration_*.py")))
    evidence = EVIDENCE_OF_ONE.get(model_type) or EVIDENCE[UNSUPPORTED[model_type]]
    assert re.search(evidence, source), model_type


@pytest.fixture
def qwen2_vl(tmp_path):
    folder = tmp_path / "qwen2-vl"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    return folder


EXPECTED = r"qwen2-vl holds an assistant of type qwen2_vl, .*M-RoPE.*; use it with transformers, or .*`mmchat init`"


def test_import_says_why(qwen2_vl):
    with pytest.raises(UserError, match=EXPECTED):
        import_model(qwen2_vl)


def test_as_a_language_model(qwen2_vl, tmp_path, capsys):
    arguments = ["init", "--language", str(qwen2_vl), "--vision", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert re.search(EXPECTED, capsys.readouterr().err)


@pytest.mark.parametrize("weights", [True, False], ids=["train", "plan"])
def test_as_the_model_of_a_run(qwen2_vl, weights):
    with pytest.raises(UserError, match=EXPECTED):
        AssistantObjective(SimpleNamespace(model=str(qwen2_vl)), weights)


QUANTIZED = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": True},
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
}
"""`quantization_config` as released checkpoints have it; older ones of bitsandbytes name no method."""


@pytest.mark.parametrize("method", QUANTIZED)
def test_a_quantized_language_model(method, language_json, data_dir, make_tower, tmp_path, capsys):
    folder = shutil.copytree(data_dir / "tokenizers" / "llama_like_legacy_false", tmp_path / "quantized")
    shutil.copy(language_json("llama", quantization_config=QUANTIZED[method]), folder / "config.json")
    save_tower(make_tower(layer=-2), tmp_path / "tower")
    for language in ([str(folder)], [str(folder / "config.json"), "--tokenizer", str(folder)]):
        for options in ([], ["--without-weights"]):
            out = str(tmp_path / "out")
            with pytest.raises(SystemExit, match="2"):
                main(["init", "--language", *language, "--vision", str(tmp_path / "tower"), "--out", out, *options])
            error = capsys.readouterr().err
            assert f"are quantized (quantization_config in config.json: '{method}')" in error
            assert error.count("\n") == 1 and "open the release that was quantized" in error
    with pytest.raises(UserError, match="quantized"):
        assemble(str(folder), [], [])
