"""transformers' LlavaForConditionalGeneration: imported with equal logits, trained, exported with equal tensors."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

from mmchat.cli.main import main
from mmchat.conversation import TEMPLATES, SlotTokens
from mmchat.conversion import export_model, import_model
from mmchat.conversion.chat_templates import FoundTemplate, find_template, plain_chat_template
from mmchat.conversion.formats.llava_hf import LlavaHF
from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.model.directory import load_assistant, save_assistant
from mmchat.vision.spec import HALF, Preprocessing
from tests.conversion.hf_models import (
    CLIP_PROCESSOR,
    LLAVA_JINJA,
    SIGLIP_PROCESSOR,
    assert_answers_alike,
    assert_learns,
    change_config,
    open_tokenizer,
    rename_keys,
    save_source,
    spread,
    text_config,
    tower_config,
)


def make_llava(kind="llama", tower="clip", text=None, vision=None, **changes):
    tokenizer = open_tokenizer(kind, "<image>")
    config = LlavaConfig(
        vision_config=tower_config(tower, **(vision or {})),
        text_config=text_config(kind, tokenizer, **(text or {})),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        **{"vision_feature_select_strategy": "full" if tower == "siglip" else "default", **changes},
    )
    torch.manual_seed(0)
    return spread(LlavaForConditionalGeneration(config)), tokenizer


def save_llava(folder, kind="llama", tower="clip", jinja=LLAVA_JINJA, **changes):
    """The directory, in transformers 4's layout, and the model."""
    model, tokenizer = make_llava(kind, tower, **changes)
    save_source(model, tokenizer, folder, jinja, CLIP_PROCESSOR if tower == "clip" else SIGLIP_PROCESSOR)
    rename_keys(folder, lambda key: key.replace("vision_tower.", "vision_tower.vision_model."))
    return folder, model


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava") / "source")[0]


@pytest.fixture
def copied(source, tmp_path):
    """A copy of `source` to change."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


TIED = {"text": {"tie_word_embeddings": True}, "tie_word_embeddings": True}
SHAPES = {
    "llama and CLIP": ("llama", "clip", {}),
    "qwen2 and SigLIP": ("qwen2", "siglip", {}),
    "tied qwen2": ("qwen2", "clip", TIED),
    "opt": ("opt", "clip", {}),
    "several layers": ("llama", "clip", {"vision_feature_layer": [-2, 1, -1]}),
    "last layer": ("llama", "siglip", {"vision_feature_layer": -1}),
    "class token": ("llama", "clip", {"vision_feature_select_strategy": "full"}),
    "no pooling head": ("llama", "siglip", {"vision": {"vision_use_head": False}}),
}


FAST = ("llama and CLIP", "qwen2 and SigLIP")


@pytest.mark.parametrize(
    "shape", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]
)
def test_import_and_export(shape, tmp_path):
    kind, tower, changes = SHAPES[shape]
    folder, original = save_llava(tmp_path / "source", kind, tower, **changes)
    model, processor = import_model(folder)
    assert (processor.template, processor.system, processor.slots["pad"]) == ("vicuna_v1", "", "<image>")
    assert_answers_alike(model, processor, original)
    save_assistant(model, processor, tmp_path / "ours")
    lines = export_model(tmp_path / "ours", "hf", tmp_path / "exported")
    assert "LlavaForConditionalGeneration opened it" in lines[1] and "LlavaProcessor opened it" in lines[2]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "exported"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    configs = [LlavaConfig.from_pretrained(tmp_path / name).to_dict() for name in ("source", "exported")]
    for config in configs:
        config["text_config"].pop("tie_word_embeddings")  # decided by the whole config
        for part in ("text_config", "vision_config"):
            config[part].pop("dtype")
    assert configs[1] == {**configs[0], "image_seq_length": processor.image_tokens}


@pytest.mark.slow
def test_transformers_5_layout_and_half_precision(tmp_path):
    original, tokenizer = make_llava("llama")
    save_source(original, tokenizer, tmp_path / "v4", LLAVA_JINJA, CLIP_PROCESSOR)
    half = original.bfloat16()
    half.save_pretrained(tmp_path / "v4", save_original_format=False)
    assert "model.vision_tower.pre_layrnorm.weight" in load_file(tmp_path / "v4" / "model.safetensors")
    model, processor = import_model(tmp_path / "v4")
    assert model.dtype == torch.bfloat16
    reopened = LlavaForConditionalGeneration.from_pretrained(tmp_path / "v4", dtype="float32")
    assert_answers_alike(model.float(), processor, reopened)
    save_assistant(*import_model(tmp_path / "v4"), tmp_path / "ours")
    export_model(tmp_path / "ours", "llava-hf", tmp_path / "exported")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    key = "vision_tower.vision_model.pre_layrnorm.weight"
    assert torch.equal(exported[key], half.model.vision_tower.pre_layrnorm.weight.bfloat16())
    assert read_json(tmp_path / "exported" / "config.json")["dtype"] == "bfloat16"


def test_an_import_learns(source, make_image):
    model, processor = import_model(source)
    assert_learns(model, processor, [make_image(seed) for seed in range(3)])


def test_commands(source, tmp_path, capsys):
    assert main(["import", str(source), str(tmp_path / "ours")]) == 0
    out = capsys.readouterr().out
    assert "16 slots per image, vicuna_v1" in out and f"next: mmchat chat {tmp_path / 'ours'} --image IMAGE" in out
    assert main(["export", str(tmp_path / "ours"), "--to", "hf", "--out", str(tmp_path / "exported")]) == 0
    out = capsys.readouterr().out
    assert "32 greedy tokens equal" in out and "LlavaProcessor opened it: equal token ids" in out
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "ours"), "--to", "hf", "--out", str(tmp_path / "exported")])


def test_the_pipeline_of_transformers_answers(source, tmp_path, make_image):
    save_assistant(*import_model(source), tmp_path / "ours")
    export_model(tmp_path / "ours", "hf", tmp_path / "exported")
    pipeline = transformers.pipeline("image-text-to-text", model=str(tmp_path / "exported"))
    content = [{"type": "image", "image": make_image()}, {"type": "text", "text": "What is this?"}]
    (answer,) = pipeline(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
    assert isinstance(answer["generated_text"], str)


# What an import refuses


def test_weights_are_loaded_strictly(copied):
    path = copied / "model.safetensors"
    tensors = load_file(path)
    tensors["language_model.model.layers.0.extra"] = tensors.pop("multi_modal_projector.linear_2.bias")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing: projectors\.0\.2\.bias; left over: .*layers\.0\.extra"):
        import_model(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "vipllava"},
            "vipllava, which mmchat cannot express: its MLP projector begins",
        ),
        ({"model_type": "qwen2_vl"}, r"M-RoPE.*mmchat init"),
        ({"model_type": "paligemma"}, "attention runs both ways"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias False"),
        ({"image_token_index": 3}, "names 3 as the id of its image token"),
        ({"tie_word_embeddings": True}, "differs from the embeddings, but its config ties"),
        ({"vision_config": {"model_type": "pixtral"}}, "is a pixtral, expected one of clip_vision_model"),
    ],
)
def test_refused_configs(changes, message, copied):
    change_config(copied, **changes)
    with pytest.raises(UserError, match=message):
        import_model(copied)


def test_siglip_without_its_first_patch_is_refused(tmp_path):
    folder, _ = save_llava(tmp_path / "source", tower="siglip", vision_feature_select_strategy="default")
    with pytest.raises(UserError, match="drops the first patch"):
        import_model(folder)


def test_language_models_that_change_their_logits_are_refused(copied):
    text = {"model_type": "gemma2", "final_logit_softcapping": 30.0, "num_hidden_layers": 1, "hidden_size": 32}
    change_config(copied, text_config=text)
    with pytest.raises(UserError, match=r"gemma2 that changes its logits after the head \(final_logit_softcapping\)"):
        import_model(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_size": {"height": 42, "width": 42}, "size": {"shortest_edge": 42}}, "makes 42"),
        ({"do_normalize": False}, "turns do_normalize off"),
    ],
)
def test_refused_image_processors(changes, message, copied):
    (copied / "preprocessor_config.json").write_text(json.dumps({**CLIP_PROCESSOR, **changes}))
    with pytest.raises(UserError, match=message):
        import_model(copied)


def test_a_source_without_a_chat_template_needs_a_name(copied):
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"has no chat template.*--template"):
        import_model(copied)
    with pytest.raises(UserError, match="did you mean 'vicuna_v1'"):
        import_model(copied, template="vicuna")
    assert import_model(copied, template="vicuna_v1")[1].system is None


def test_old_chat_template_files_are_read(copied):
    (copied / "chat_template.jinja").unlink()
    (copied / "chat_template.json").write_text(json.dumps({"chat_template": LLAVA_JINJA}))
    assert import_model(copied)[1].template == "vicuna_v1"


# Chat templates


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"auto"}))
@pytest.mark.parametrize("kind", ["llama", "qwen2", "opt"])
def test_exported_jinja_gives_the_ids_of_training_in_plain_tokenization(name, kind, make_assistant):
    """As LlavaProcessor encodes: the whole prompt as one string, BOS only if it is not written."""
    _, processor = make_assistant(kind)
    tokenizer = processor.tokenizer
    tokenizer.add_tokens([token for token in TEMPLATES[name].control if token not in tokenizer.get_vocab()])
    try:
        processor = type(processor)(processor.image_processor, tokenizer, template=name, image_tokens=1)
    except UserError as error:
        pytest.skip(str(error))
    image, second = {"type": "image"}, {"role": "user", "content": [{"type": "text", "text": " And what else?"}]}
    first = {"role": "user", "content": [image, image, {"type": "text", "text": "What are these?"}]}
    dialogues = [[first], [first, {"role": "assistant", "content": [{"type": "text", "text": "Noise."}]}, second]]
    for messages in dialogues[: 1 if TEMPLATES[name].one_exchange else 2]:
        expected = processor.render(messages, add_generation_prompt=True).input_ids
        text = tokenizer.apply_chat_template(
            messages, chat_template=plain_chat_template(processor), add_generation_prompt=True, tokenize=False
        )
        bos = tokenizer.bos_token
        assert tokenizer(text, add_special_tokens=not (bos and text.startswith(bos))).input_ids == expected


@pytest.mark.parametrize(
    ("kind", "name", "found"),
    [
        ("llama", "vicuna_v1", ("vicuna_v1", None)),
        ("qwen2", "chatml", ("chatml", None)),
        ("qwen2", "qwen_3", ("chatml", "")),  # they differ in tool messages only
        ("opt", "vary_opt", ("vary_opt", None)),
    ],
)
def test_templates_are_found_by_what_they_write(kind, name, found, make_assistant):
    _, processor = make_assistant(kind)
    processor = type(processor)(processor.image_processor, processor.tokenizer, template=name)
    result = find_template(processor.tokenizer, plain_chat_template(processor), "<imgpad>")
    assert (result.name, result.system, result.slots) == (*found, processor.slot_tokens)


def test_other_templates_are_auto(make_assistant):
    tokenizer = make_assistant()[1].tokenizer
    for jinja in ("{{ messages[0]['content'][1]['text'] }}!", "{{ raise_exception('no') }}", None):
        assert find_template(tokenizer, jinja, "<imgpad>") == FoundTemplate("auto", None, SlotTokens("<imgpad>"))


# What an export writes and refuses

FITS = {
    "pad": Preprocessing(fit="pad", resample="bilinear"),
    "squash": Preprocessing(HALF, HALF, fit="squash"),
    "crop": Preprocessing(crop_fraction=0.875),
}


@pytest.mark.parametrize("fit", FITS)
def test_fits_and_slot_tokens(fit, make_assistant, make_tower, tmp_path):
    """Pixels and ids are compared by the export itself."""
    model, processor = make_assistant(towers=[make_tower(layer=-2, preprocessing=FITS[fit])])
    save_assistant(model, processor, tmp_path / "ours")
    assert "LlavaProcessor opened it" in export_model(tmp_path / "ours", "hf", tmp_path / "exported")[2]
    again, again_processor = import_model(tmp_path / "exported")
    assert model.specs == again.specs and model.config.projectors == again.config.projectors
    for name in ("template", "system", "slots", "image_tokens"):
        assert getattr(processor, name) == getattr(again_processor, name)
    state = again.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_a_linear_projector_is_written_as_two_matrices(make_assistant, make_tower, tmp_path):
    towers = [make_tower(backbone={"hidden_size": 16})]
    save_assistant(*make_assistant(towers=towers, projector="linear"), tmp_path / "ours")
    assert "greedy tokens equal" in export_model(tmp_path / "ours", "hf", tmp_path / "exported")[1]


def test_tied_embeddings_of_opt_are_written_twice(make_assistant, tmp_path):
    save_assistant(*make_assistant("opt", words="llama"), tmp_path / "ours")
    export_model(tmp_path / "ours", "hf", tmp_path / "exported")
    tensors = load_file(tmp_path / "exported" / "model.safetensors")
    head = tensors["language_model.lm_head.weight"]
    assert torch.equal(head, tensors["language_model.model.decoder.embed_tokens.weight"])


def one(make_tower, **settings):
    return {"towers": [make_tower(**settings)]}


REFUSED = {
    "two towers": (lambda make: {"towers": [make(), make(seed=1)]}, "2 vision towers, expected one"),
    "final norm": (lambda make: one(make, final_norm=True), "last norm is applied to the features"),
    "family": (lambda make: one(make, family="clip_vit_headless"), "a clip_vit_headless, expected clip_vit or siglip"),
    "resampler": (lambda make: {"projector": "resampler4"}, "its projector is resampler4, expected mlp2x_gelu"),
    "deep MLP": (lambda make: {"projector": "mlp3x_gelu"}, "its projector is mlp3x_gelu"),
    "wide linear": (lambda make: {"projector": "linear"}, "width 32 is less than twice the tower's 32"),
    "tiles": (lambda make: one(make, preprocessing=Preprocessing(fit="tiles")), "its fit is 'tiles'"),
    "SAM's fit": (lambda make: one(make, preprocessing=Preprocessing(fit="longest-edge-pad")), "'longest-edge-pad'"),
}


@pytest.mark.parametrize("shape", REFUSED)
def test_refused_shapes(shape, make_assistant, make_tower, tmp_path):
    changes, reason = REFUSED[shape]
    model, processor = make_assistant(**changes(make_tower))
    (found,) = LlavaHF().refusals(model.config, processor)
    assert reason in found
    save_assistant(model, processor, tmp_path / "ours")
    with pytest.raises(UserError, match=reason):
        export_model(tmp_path / "ours", "llava-hf", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_native_aspect_is_refused(make_assistant, native_tower):
    model, processor = make_assistant(towers=[native_tower])
    assert LlavaHF().refusals(model.config, processor) == ["its tower is a siglip2, expected clip_vit or siglip"]


def test_every_reason_is_listed(make_assistant, make_tower):
    towers = [make_tower(preprocessing=Preprocessing(fit="tiles"))]
    model, processor = make_assistant(towers=towers, projector="mlp3x_gelu")
    assert len(LlavaHF().refusals(model.config, processor)) == 2


def test_a_projector_damaged_in_export_is_noticed(source, tmp_path, monkeypatch):
    save_assistant(*import_model(source), tmp_path / "ours")
    exported = LlavaHF.export

    def damaged(self, model, processor):
        result = exported(self, model, processor)
        result.state["multi_modal_projector.linear_1.bias"] = result.state["multi_modal_projector.linear_1.bias"] + 1
        return result

    monkeypatch.setattr(LlavaHF, "export", damaged)
    with pytest.raises(RuntimeError, match="gives other logits for 1 image"):
        export_model(tmp_path / "ours", "hf", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    assert load_assistant(tmp_path / "ours")
