"""Sources that are damaged or hostile: one message each, nothing run and nothing written."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from mmchat.cli.main import main
from mmchat.conversion import import_model
from mmchat.errors import UserError
from tests.conversion.hf_models import CLIP_PROCESSOR, assert_answers_alike, change_config, open_tokenizer, text_config
from tests.conversion.test_llava_hf import save_llava

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
HEAD, EMBEDDINGS = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
BIAS = "multi_modal_projector.linear_1.bias"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava") / "source")[0]


@pytest.fixture
def copied(source, tmp_path):
    return shutil.copytree(source, tmp_path / "copy")


def change_weights(folder, change):
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def set_weight(key, make):
    return lambda folder: change_weights(folder, lambda state: state.update({key: make(state)}))


def with_index(text):
    def change(folder):
        (folder / WEIGHTS).unlink()
        (folder / INDEX).write_text(text)

    return change


def linked_to_nowhere(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "nowhere")


def pickled(values):
    def change(folder):
        state = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        torch.save(values(state), folder / "pytorch_model.bin")

    return change


def holding_itself(_):
    values = {}
    values["model"] = values
    return values


def set_part(part, **values):
    def change(folder):
        stated = json.loads((folder / "config.json").read_text())[part]
        change_config(folder, **{part: stated | values})

    return change


REFUSED = {
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "holds a JSON list"),
    "config too deep": (lambda folder: (folder / "config.json").write_text("[" * 100_000), "is not valid JSON"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), r"holds no weights: expected model\.safetensors"),
    "link to nowhere": (linked_to_nowhere, r"model\.safetensors cannot be read"),
    "index is a list": (with_index("[]"), "holds a JSON list"),
    "index of numbers": (with_index('{"weight_map": {"a": 1}}'), "has no weight_map"),
    "tokenizer config": (
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
        "tokenizer_config.json holds",
    ),
    "tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "^tokenizer "),
    "quantized": (
        lambda folder: change_config(folder, quantization_config={"quant_method": "awq"}),
        "quantized.*'awq'",
    ),
    "integers": (set_weight(BIAS, lambda state: state[BIAS].to(torch.int8)), r"projectors\.0\.0\.bias is of type int8"),
    "not finite": (set_weight(BIAS, lambda state: state[BIAS] / 0), r"projectors\.0\.0\.bias is not finite"),
    "one weight twice": (set_weight("lm_head.weight", lambda state: state[HEAD] + 1), "under two names"),
    "pickle of itself": (pickled(holding_itself), "holds no weights"),
    "one channel": (set_part("vision_config", num_channels=1), "num_channels 1"),
    "no heads": (set_part("text_config", head_dim=0), r"has text_config\.head_dim 0, expected a whole number"),
    "rope": (set_part("text_config", rope_parameters={"rope_type": []}), r"cannot be opened: .*\(TypeError"),
    "too wide to allocate": (set_part("text_config", hidden_size=4 * 10**6), r"of another shape: .* for \(4000000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_damage_is_named_in_one_message(name, copied, tmp_path, capsys):
    change, message = REFUSED[name]
    change(copied)
    with pytest.raises(UserError, match=message):
        import_model(copied)
    with pytest.raises(SystemExit) as stopped:
        main(["import", str(copied), str(tmp_path / "out")])
    assert stopped.value.code == 2 and [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_keys_that_are_no_names_are_left_out(copied):
    pickled(lambda state: {1: torch.zeros(2), **state})(copied)
    import_model(copied)


@pytest.mark.parametrize("rounded", ["language_model.", "vision_tower."])
def test_no_weight_is_rounded_to_the_precision_of_others(rounded, copied):
    def change(state):
        state |= {key: tensor.bfloat16() for key, tensor in state.items() if key.startswith(rounded)}

    change_weights(copied, change)
    model, processor = import_model(copied)
    assert model.dtype == torch.float32
    assert_answers_alike(model, processor, LlavaForConditionalGeneration.from_pretrained(copied, dtype="float32"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rescale_factor": 1 / 127.5}, "has rescale_factor 0.00784.*expected 1/255"),
        ({"image_std": [0.5, 0, 0.5]}, "std is .*above 0"),
        ({"image_mean": [0.5]}, "mean is .*three numbers"),
        ({"image_mean": ["a", 0, 0]}, "mean is .*three numbers"),
    ],
    ids=str,
)
def test_pixels_that_would_differ(changes, message, copied):
    (copied / "preprocessor_config.json").write_text(json.dumps({**CLIP_PROCESSOR, **changes}))
    with pytest.raises(UserError, match=message):
        import_model(copied)


def test_one_number_for_all_channels(copied):
    (copied / "preprocessor_config.json").write_text(json.dumps({**CLIP_PROCESSOR, "image_mean": 0.25}))
    assert import_model(copied)[1].image_processor.specs[0].preprocessing.mean == (0.25, 0.25, 0.25)


# Language models of `mmchat init`


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("language") / "llama", open_tokenizer("llama")
    AutoModelForCausalLM.from_config(text_config("llama", tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_code(folder):
    (folder / "code.py").write_text("raise SystemExit('run')\n")
    places = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    change_config(folder, model_type="unknown", auto_map=places)


def outside(folder):
    keys = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(keys, f"../{WEIGHTS}")}))


LANGUAGES = {
    "missing": (lambda folder: change_weights(folder, lambda state: state.pop("lm_head.weight")), "missing: lm_head"),
    "left over": (set_weight("extra", lambda _: torch.zeros(2)), "left over: extra"),
    "another shape": (set_weight("lm_head.weight", lambda _: torch.zeros(2, 3)), "of another shape: .*lm_head"),
    "code": (with_code, "custom code"),
    "outside": (outside, r"names files that are not beside it: \.\./model\.safetensors"),
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_language_models(name, language, tmp_path, make_tower, monkeypatch, capsys):
    """transformers would give missing weights random values, and would ask whether to run the code."""
    monkeypatch.setattr("builtins.input", lambda _: "y")
    folder, tower = shutil.copytree(language, tmp_path / "in" / "copy"), tmp_path / "in" / "tower.json"
    change, message = LANGUAGES[name]
    change(folder)
    tower.write_text(json.dumps(make_tower().config.to_dict()))
    with pytest.raises(SystemExit) as stopped:
        main(["init", "--language", str(folder), "--vision", str(tower), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and [path.name for path in tmp_path.iterdir()] == ["in"]
    error = capsys.readouterr().err
    assert re.search(message, error), error
