"""InternVL in OpenGVLab's layout: the same model as in transformers' layout under renamed keys."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmchat.conversion import import_model
from mmchat.errors import UserError
from tests.conftest import LANGUAGE
from tests.conversion.internvl_models import SIDE, SLOTS, VISION, image_of, make_internvl

TOLERANCE = {"atol": 1e-4, "rtol": 0}
RENAMED = (
    (r"vision_tower\.embeddings\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"vision_tower\.embeddings\.position_embeddings", "vision_model.embeddings.position_embedding"),
    (r"vision_tower\.embeddings\.patch_embeddings\.projection", "vision_model.embeddings.patch_embedding"),
    (r"vision_tower\.encoder\.layer\.(\d+)\.lambda_(\d)", r"vision_model.encoder.layers.\1.ls\2"),
    (r"vision_tower\.encoder\.layer\.(\d+)\.layernorm_before", r"vision_model.encoder.layers.\1.norm1"),
    (r"vision_tower\.encoder\.layer\.(\d+)\.layernorm_after", r"vision_model.encoder.layers.\1.norm2"),
    (r"vision_tower\.encoder\.layer\.(\d+)\.attention\.projection_layer", r"vision_model.encoder.layers.\1.attn.proj"),
    (r"vision_tower\.encoder\.layer\.(\d+)\.attention\.(.)_proj", r"vision_model.encoder.layers.\1.attn.\2"),
    (r"vision_tower\.encoder\.layer\.(\d+)\.mlp", r"vision_model.encoder.layers.\1.mlp"),
    (r"multi_modal_projector\.layer_norm", "mlp1.0"),
    (r"multi_modal_projector\.linear_1", "mlp1.1"),
    (r"multi_modal_projector\.linear_2", "mlp1.3"),
)
"""transformers' keys -> OpenGVLab's: internvl_chat/internvl/model/internvl_chat/modeling_intern_vit.py and
modeling_internvl_chat.py of OpenGVLab/InternVL, as transformers' convert_internvl_weights_to_hf.py maps them."""
INTERNLM2 = (
    ("embed_tokens", "tok_embeddings"),
    ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.down_proj", "feed_forward.w2"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("lm_head", "output"),
    ("self_attn.", "attention."),
)
"""internvl_chat/internvl/model/internlm2/modeling_internlm2.py."""
ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM", "internlm2": "InternLM2ForCausalLM"}
VISION_NAMES = {"attention_bias": "qkv_bias"}
CHAT = {
    "model_type": "internvl_chat",
    "architectures": ["InternVLChatModel"],
    "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": SIDE,
    "max_dynamic_patch": 4,
    "min_dynamic_patch": 1,
    "ps_version": "v2",
    "select_layer": -1,
    "template": "internvl2_5",
    "use_thumbnail": True,
    "pad2square": False,
}


def original_state(state, language):
    renamed = {}
    for key, tensor in state.items():
        for theirs, original in RENAMED:
            key = re.sub(f"^{theirs}", original, key)
        if language == "internlm2" and key.startswith("language_model."):
            for theirs, original in INTERNLM2:
                key = key.replace(theirs, original)
        renamed[key] = tensor
    return fused_wqkv(fused_qkv(renamed)) if language == "internlm2" else fused_qkv(renamed)


def fused_qkv(state):
    fused = {key: tensor for key, tensor in state.items() if not re.search(r"\.attn\.[qkv]\.", key)}
    for key in state:
        if ".attn.q." in key:
            fused[key.replace(".q.", ".qkv.")] = torch.cat([state[key.replace(".q.", f".{n}.")] for n in "qkv"])
    return fused


def fused_wqkv(state):
    """Row by row: of each key-value head its query heads, its key, its value."""
    width, heads, groups = 32, LANGUAGE["llama"]["num_attention_heads"], LANGUAGE["llama"]["num_key_value_heads"]
    head = width // heads
    fused = {key: tensor for key, tensor in state.items() if not re.search(r"\.[qkv]_proj\.", key)}
    for key in state:
        if ".q_proj." not in key:
            continue
        query, keys, values = (state[key.replace(".q_proj.", f".{n}_proj.")] for n in "qkv")
        rows = []
        for group in range(groups):
            for number in range(heads // groups):
                start = (group * (heads // groups) + number) * head
                rows.append(query[start : start + head])
            rows += [keys[group * head : (group + 1) * head], values[group * head : (group + 1) * head]]
        fused[key.replace("q_proj", "wqkv")] = torch.cat(rows)
    return fused


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def original(request, tmp_path_factory):
    return make_original(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_original(tmp_path_factory.mktemp("qwen2"), "qwen2")[0]


def make_original(folder, kind):
    """The directory, in OpenGVLab's layout, and transformers' model."""
    language = "qwen2" if kind == "qwen2" else "llama"
    theirs = make_internvl(folder, language)
    text = LANGUAGE[language] | {"architectures": [ARCHITECTURES[kind]], "model_type": kind}
    text |= {"vocab_size": theirs.config.text_config.vocab_size, "rope_theta": 10000.0, "torch_dtype": "bfloat16"}
    if kind == "internlm2":
        text |= {"bias": False, "attn_implementation": "flash_attention_2", "auto_map": {"AutoConfig": "a.B"}}
    vision = {VISION_NAMES.get(key, key): value for key, value in VISION.items()} | {"model_type": "intern_vit_6b"}
    vision |= {"image_size": SIDE, "patch_size": 7, "norm_type": "layer_norm", "qk_normalization": False}
    (folder / "config.json").write_text(json.dumps(CHAT | {"vision_config": vision, "llm_config": text}))
    save_file(original_state(load_file(folder / "model.safetensors"), kind), folder / "model.safetensors")
    (folder / "processor_config.json").unlink()
    return folder, theirs


@pytest.mark.parametrize("size", [(30, 30), (110, 60)], ids=str)
def test_logits_of_the_same_model(original, size):
    folder, theirs = original
    model, processor = import_model(folder)
    messages = [{"from": "human", "value": "<image>\nWhat is this?"}]
    image = image_of(size)
    views = processor.image_processor.views(size)
    ids = torch.tensor([processor.render(messages, [views], add_generation_prompt=True).input_ids])
    inputs = {"input_ids": ids, **processor.image_processor([image])}
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, theirs(**inputs).logits, **TOLERANCE)
    text = processor.tokenizer.decode(ids[0])
    group = f"{SLOTS.start}{SLOTS.pad * 4 * views}{SLOTS.end}"
    assert text.removeprefix("<s>").replace("<0x0A>", "\n").startswith("<|im_start|>system\n你是书生")
    assert text.endswith(f"<|im_end|>\n<|im_start|>user\n{group}\nWhat is this?<|im_end|>\n<|im_start|>assistant\n")


def test_settings_of_the_config(folder, tmp_path):
    """Without dynamic_image_size one square; `internlm2-chat` has no line breaks after turns."""
    folder = shutil.copytree(folder, tmp_path / "changed")
    change(folder, dynamic_image_size=False, pad2square=True, template="internlm2-chat", select_layer=-2)
    model, processor = import_model(folder)
    (tower,) = model.towers
    assert (tower.config.layer, tower.config.preprocessing.fit) == (-2, "pad")
    rendered = processor.render([{"from": "human", "value": "Hi"}], add_generation_prompt=True)
    text = processor.tokenizer.decode(rendered.input_ids)
    assert text.endswith("<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n")


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


REFUSED = [
    ({"ps_version": "v1"}, r"ps_version 'v1': its slots are in column order"),
    ({"downsample_ratio": 0.25}, "downsample_ratio 0.25"),
    ({"template": "phi3-chat"}, r"template 'phi3-chat', .* known: Hermes-2, internlm2-chat, internvl2_5"),
    ({"force_image_size": 56}, "force_image_size 56"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=str)
def test_what_has_no_counterpart_is_refused(folder, tmp_path, values, message):
    folder = shutil.copytree(folder, tmp_path / "changed")
    change(folder, **values)
    with pytest.raises(UserError, match=message):
        import_model(folder)


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ({"architectures": ["Phi3ForCausalLM"]}, "is a Phi3ForCausalLM, expected one of LlamaForCausalLM"),
        ({"rope_pos_id_version": "v2pe_fix"}, "V2PE"),
        ({"tie_word_embeddings": True}, "differs from the embeddings, but its config ties the two"),
    ],
    ids=str,
)
def test_other_language_models_are_refused(folder, tmp_path, language, message):
    folder = shutil.copytree(folder, tmp_path / "changed")
    stated = json.loads((folder / "config.json").read_text())["llm_config"]
    change(folder, llm_config=stated | language)
    with pytest.raises(UserError, match=message):
        import_model(folder)


def test_loading_is_strict(folder, tmp_path):
    folder = shutil.copytree(folder, tmp_path / "changed")
    state = load_file(folder / "model.safetensors")
    save_file({key: t for key, t in state.items() if key != "mlp1.3.bias"}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: projectors\.0\.4\.bias$"):
        import_model(folder)
    save_file(state | {"language_model.extra": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"left over: language_model\.extra$"):
        import_model(folder)
