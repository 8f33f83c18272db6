"""LoRA adapter directories: PEFT's format, strict loading onto the base model, exact merging."""

import hashlib
import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmchat.errors import UserError
from mmchat.model.assembly import assemble
from mmchat.model.directory import comparison_logits, load_assistant, load_processor, save_assistant
from mmchat.model.lora_adapter import LoraShape, add_adapter, load_adapter, merge, modules_to_save, save_adapter
from tests.conftest import DATA
from tests.language_kinds import KINDS, SHAPE

ATTENTION = "language_model.model.layers.{}.self_attn.{}_proj"
LAYERS = {
    ATTENTION.format(0, "q"): LoraShape(2, 4),
    ATTENTION.format(1, "v"): LoraShape(2, 4),
    "towers.0.backbone.encoder.layers.0.mlp.fc1": LoraShape(3, 3),
}


FULL = {f"projectors.0.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
WEIGHTS, WEIGHTS_OF_ADAPTER = "model.safetensors", "adapter_model.safetensors"


def adapted(base):
    """An adapter on `base` with random updates, also of the projector, and the processor."""
    model, processor = load_assistant(base)
    adapter = add_adapter(model, LAYERS, dropout=0.1)
    model.projectors.requires_grad_(True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adapter, processor


@pytest.fixture(scope="module")
def trained(assistant_dir, tmp_path_factory):
    """(base, adapter directory, logits of the adapted model), with random updates instead of training."""
    folder = tmp_path_factory.mktemp("adapter")
    base = shutil.copytree(assistant_dir, folder / "base")
    adapter, processor = adapted(base)
    save_adapter(adapter, processor, folder / "run" / "adapter", base)
    return base, folder / "run" / "adapter", comparison_logits(adapter.eval(), processor)


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of base and adapter, with the same relative path."""
    shutil.copytree(trained[0].parent, tmp_path / "copy")
    return tmp_path / "copy" / "base", tmp_path / "copy" / "run" / "adapter"


def test_plain_peft_opens_it(trained):
    base, directory, logits = trained
    model = AutoModelForImageTextToText.from_pretrained(base)
    processor = AutoProcessor.from_pretrained(directory)
    assert (comparison_logits(model.eval(), processor) - logits).abs().max() > 0.1
    opened = peft.PeftModel.from_pretrained(model, directory).eval()
    torch.testing.assert_close(comparison_logits(opened, processor), logits, rtol=0, atol=0)
    lora = {f"base_model.model.{name}.lora_{part}.weight" for name in LAYERS for part in "AB"}
    full = {f"base_model.model.{name}" for name in FULL}
    assert set(load_file(directory / "adapter_model.safetensors")) == lora | full


def test_transformers_alone_opens_it(trained):
    base, directory, logits = trained
    model = AutoModelForImageTextToText.from_pretrained(base)
    model.load_adapter(directory)
    processor = AutoProcessor.from_pretrained(directory)
    torch.testing.assert_close(comparison_logits(model.eval(), processor), logits, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["llama", "opt"], ids=["untied", "tied"])
def test_trained_embeddings_are_part_of_it(make_assistant, tmp_path, kind):
    """Also where they are tied to the head, which PEFT unties. The slot tokens' rows are among them."""
    model, processor = make_assistant(kind)
    save_assistant(model, processor, tmp_path / "base")
    path = {"llama": ATTENTION, "opt": "language_model.model.decoder.layers.{}.self_attn.{}_proj"}[kind]
    adapter = add_adapter(model, {path.format(0, "q"): LoraShape(2, 4)}, 0.0)
    model.get_input_embeddings().weight.requires_grad_(True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    expected = comparison_logits(adapter.eval(), processor)
    save_adapter(adapter, processor, tmp_path / "adapter", tmp_path / "base")
    alone = peft.PeftModel.from_pretrained(load_assistant(tmp_path / "base")[0], tmp_path / "adapter").eval()
    torch.testing.assert_close(comparison_logits(alone, processor), expected, rtol=0, atol=0)
    merged, _ = merge(*load_adapter(tmp_path / "adapter"))
    save_assistant(merged, processor, tmp_path / "model")
    reopened = load_assistant(tmp_path / "model")[0]
    torch.testing.assert_close(comparison_logits(reopened, processor), expected, rtol=0, atol=1e-5)
    assert reopened.config.tie_word_embeddings == reopened.config.text_config.tie_word_embeddings == (kind == "opt")
    embeddings, head = reopened.get_input_embeddings().weight, reopened.get_output_embeddings().weight
    assert (embeddings.data_ptr() == head.data_ptr()) == (kind == "opt")


def test_an_adapter_says_what_its_base_is_and_nothing_of_this_machine(trained):
    base, directory, _ = trained
    card = (directory / "README.md").read_text()
    assert "PeftModel.from_pretrained" in card and hashlib.sha256((base / WEIGHTS).read_bytes()).hexdigest() in card
    assert all(str(base.parent).encode() not in path.read_bytes() for path in directory.iterdir())


def test_lora_inside_a_module_trained_in_full_is_refused(make_assistant):
    model, _ = make_assistant()
    add_adapter(model, LAYERS, 0.0)
    layer = model.towers[0].backbone.encoder.layers[0]
    layer.scale = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(UserError, match=r"layers\.0 has parameters of its own .*\.0\.mlp\.fc1 inside it has LoRA"):
        modules_to_save(model)


def test_an_adapter_of_an_older_mmchat_is_refused(copy):
    _, directory = copy
    (directory / "full.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds full\.safetensors, which an older mmchat wrote .*; use model/"):
        load_adapter(directory)


def test_merged_equals_adapted_and_leaves_the_rest_alone(trained):
    base, directory, logits = trained
    merged, difference = merge(*load_adapter(directory))
    processor = load_processor(base)
    assert difference < 1e-4
    torch.testing.assert_close(comparison_logits(merged, processor), logits, rtol=0, atol=1e-4)
    before, after = load_assistant(base)[0].state_dict(), merged.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {*FULL, *(f"{name}.weight" for name in LAYERS)}
    # By hand: W + alpha / rank * B @ A.
    update = load_file(directory / "adapter_model.safetensors")
    for name, shape in LAYERS.items():
        a, b = (update[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        expected = before[f"{name}.weight"] + shape.alpha / shape.rank * b @ a
        torch.testing.assert_close(after[f"{name}.weight"], expected)


VARIANTS = {"dora": {"dora": True}, "rslora": {"rslora": True}, "both": {"dora": True, "rslora": True}}


def by_hand(weight, update, name, shape, dora, rslora):
    """W + s B A, with the norms of DoRA if there are any."""
    a, b = (update[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    changed = weight + shape.alpha / (shape.rank**0.5 if rslora else shape.rank) * b @ a
    if not dora:
        return changed
    norms = update[f"base_model.model.{name}.lora_magnitude_vector"]
    return norms[:, None] * changed / changed.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_variants_go_to_disk_and_back_and_merge_as_by_hand(assistant_dir, tmp_path, variant):
    """On the tower, a projector and the language model; the config that PEFT reads says which variant it is."""
    layers = LAYERS | {"projectors.0.0": LoraShape(2, 6)}
    model, processor = load_assistant(assistant_dir)
    adapter = add_adapter(model, layers, dropout=0.0, **variant)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    expected = comparison_logits(adapter.eval(), processor)
    save_adapter(adapter, processor, tmp_path / "adapter", assistant_dir)
    stated = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (stated["use_dora"], stated["use_rslora"]) == tuple(variant.get(key, False) for key in ("dora", "rslora"))
    alone = peft.PeftModel.from_pretrained(load_assistant(assistant_dir)[0], tmp_path / "adapter").eval()
    torch.testing.assert_close(comparison_logits(alone, processor), expected, rtol=0, atol=0)
    merged, difference = merge(*load_adapter(tmp_path / "adapter"))
    assert difference < 1e-4
    save_assistant(merged, processor, tmp_path / "model")
    reopened = load_assistant(tmp_path / "model")[0]
    torch.testing.assert_close(comparison_logits(reopened, processor), expected, rtol=0, atol=1e-4)
    before, after = load_assistant(assistant_dir)[0].state_dict(), reopened.state_dict()
    update = load_file(tmp_path / "adapter" / WEIGHTS_OF_ADAPTER)
    for name, shape in layers.items():
        key = f"{name}.weight"
        flags = [variant.get(flag, False) for flag in ("dora", "rslora")]
        torch.testing.assert_close(after[key], by_hand(before[key], update, name, shape, *flags))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_dora_adapts_the_transposed_layers_of_gpt2(make_tower, tmp_path):
    (tmp_path / "gpt2.json").write_text(json.dumps({"model_type": "gpt2", **SHAPE, **KINDS["gpt2"]}))
    words = str(DATA / "tokenizers" / "llama_like_legacy_false")
    model, processor = assemble(
        str(tmp_path / "gpt2.json"), [make_tower(layer=-2)], "linear", "vicuna_v1", tokenizer=words
    )
    before = comparison_logits(model.eval(), processor)
    names = [f"language_model.transformer.h.0.{part}" for part in ("attn.c_attn", "mlp.c_proj")]
    adapter = add_adapter(model, dict.fromkeys(names, LoraShape(2, 4)), 0.0, dora=True)
    torch.testing.assert_close(comparison_logits(adapter.eval(), processor), before, rtol=0, atol=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    _, difference = merge(adapter, processor)
    assert difference < 1e-4


def test_images_are_fitted_as_in_training_and_not_as_in_the_base(assistant_dir, tmp_path):
    model, processor = load_assistant(assistant_dir, fit="squash")
    adapter = add_adapter(model, LAYERS, dropout=0.0)
    save_adapter(adapter, processor, tmp_path / "adapter", assistant_dir, "squash")
    adapter, processor = load_adapter(tmp_path / "adapter")
    assert [spec.preprocessing.fit for spec in processor.image_processor.specs] == ["squash"]
    assert adapter.get_base_model().towers[0].spec == processor.image_processor.specs[0]


def test_the_base_path_is_relative(copy):
    base, directory = copy
    stated = json.loads((directory / "base.json").read_text())
    assert stated["model"] == "../../base"
    load_adapter(directory)
    moved = base.rename(base.with_name("elsewhere"))
    with pytest.raises(UserError, match=r"base\.json names .*/base, which does not exist; .*--base"):
        load_adapter(directory)
    load_adapter(directory, moved)


def test_another_base_is_refused(copy):
    base, directory = copy
    weights = load_file(base / "model.safetensors")
    weights["language_model.model.norm.weight"][0] += 1e-3
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"are not those that .*adapter was trained on"):
        load_adapter(directory)


@pytest.mark.parametrize("kind", ["lora_A", "projectors"])
def test_weights_that_do_not_fit_are_refused(copy, kind):
    _, directory = copy
    path = directory / WEIGHTS_OF_ADAPTER
    whole = load_file(path)
    key = min(name for name in whole if kind in name)
    save_file({**whole, f"{key}.more": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=f"do not fit .*missing or unexpected are .*{key}.more"):
        load_adapter(directory)
    save_file({**whole, key: torch.zeros(5, 7)}, path)
    with pytest.raises(UserError, match=r"do not fit .*base: "):
        load_adapter(directory)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"the weights in .*{path.name} are damaged or cut off"):
        load_adapter(directory)
    path.unlink()
    with pytest.raises(UserError, match=f"is not a complete adapter directory: it has no {path.name}"):
        load_adapter(directory)


@pytest.mark.parametrize("kind", ["lora_A", "projectors"])
def test_a_weight_that_is_missing_is_noticed(copy, kind):
    """PEFT alone would continue with an update of zero."""
    _, directory = copy
    path = directory / WEIGHTS_OF_ADAPTER
    weights = load_file(path)
    gone = min(name for name in weights if kind in name)
    del weights[gone]
    save_file(weights, path)
    with pytest.raises(UserError, match=f"missing or unexpected are {gone}$"):
        load_adapter(directory)


def test_what_needs_a_whole_model_says_to_merge_first(trained):
    _, directory, _ = trained
    for opener in (load_assistant, load_processor):
        with pytest.raises(UserError, match=r"holds a LoRA adapter, not a whole model; `mmchat merge .*adapter --out"):
            opener(directory)


def test_saving_notices_a_corrupted_adapter(trained, tmp_path, monkeypatch):
    base, _, _ = trained
    adapter, processor = adapted(base)
    original = peft.PeftModel.save_pretrained

    def corrupt(self, target, *args, **kwargs):
        original(self, target, *args, **kwargs)
        weights = load_file(target / "adapter_model.safetensors")
        save_file({key: value * 1.01 for key, value in weights.items()}, target / "adapter_model.safetensors")

    monkeypatch.setattr(peft.PeftModel, "save_pretrained", corrupt)
    with pytest.raises(RuntimeError, match="differs from the one in memory"):
        save_adapter(adapter, processor, tmp_path / "adapter", base)
    assert not (tmp_path / "adapter").exists()


def test_many_layers_that_peft_names_by_suffixes(make_assistant):
    """From 20 names on, PEFT shortens them to unique suffixes. The same layers must be adapted."""
    model, _ = make_assistant(num_hidden_layers=7)
    parts = ("gate_proj", "up_proj", "down_proj")
    names = [f"language_model.model.layers.{layer}.mlp.{part}" for layer in range(7) for part in parts]
    adapter = add_adapter(model, dict.fromkeys(names, LoraShape(2, 4)), 0.0)
    assert adapter.peft_config["default"].target_modules == set(parts)
    model, _ = make_assistant(num_hidden_layers=7)
    adapter = add_adapter(model, dict.fromkeys(names[:-1], LoraShape(2, 4)), 0.0)
    assert not isinstance(model.get_submodule(names[-1]), peft.tuners.lora.LoraLayer)
