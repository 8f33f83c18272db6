"""Import of LLaVA in its original layout: the original's logits, loss and gradients; bases, projectors and adapters."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaForCausalLM

from mmchat.cli.main import main
from mmchat.conversion import import_model
from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.model.directory import load_assistant, save_assistant

IMAGE, IGNORED, SLOTS = -200, -100, 16
TOWER = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector."


@pytest.fixture(scope="module")
def oracle(data_dir, tmp_path_factory):
    """The original's directory with its tokenizer. The tower that its config names is in the same parent directory."""
    folder = tmp_path_factory.mktemp("oracle") / "llava"
    shutil.copytree(data_dir / "tokenizers" / "llama_like_legacy_false", folder)
    shutil.copytree(data_dir / "clip_vit_tiny_hf4", folder.parent / "clip_vit_tiny_hf4")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(data_dir / "llava_original_full" / name, folder)
    return folder


@pytest.fixture(scope="module")
def state(oracle):
    return load_file(oracle / "model.safetensors")


@pytest.fixture
def copy(oracle, tmp_path):
    """A copy that a test may change. The tower is in the same parent directory."""
    shutil.copytree(oracle.parent / "clip_vit_tiny_hf4", tmp_path / "clip_vit_tiny_hf4")
    return shutil.copytree(oracle, tmp_path / "llava")


@pytest.fixture(scope="module")
def base(oracle, state, tmp_path_factory):
    """The language model of the original alone, as transformers writes it."""
    folder = tmp_path_factory.mktemp("base") / "llm"
    shutil.copytree(oracle, folder)
    config = {key: value for key, value in read_json(oracle / "config.json").items() if not key.startswith("mm_")}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    language = {key: tensor for key, tensor in state.items() if not key.startswith((TOWER, PROJECTOR))}
    save_file(language, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def change_config(folder, **changes):
    values = read_json(folder / "config.json") | changes
    (folder / "config.json").write_text(json.dumps({key: v for key, v in values.items() if v is not None}))
    return folder


def expanded(io, pad):
    """The oracle's rows with every image id as its slots. The original feeds a row without images a dummy image."""
    rows = []
    for ids, labels, mask in zip(io["input_ids"], io["labels"], io["attention_mask"], strict=True):
        rows.append(([], []))
        for token, label in zip(ids[mask.bool()].tolist(), labels[mask.bool()].tolist(), strict=True):
            count = SLOTS if token == IMAGE else 1
            rows[-1][0].extend([pad if token == IMAGE else token] * count)
            rows[-1][1].extend([label] * count)
    length = max(len(ids) for ids, _ in rows)
    padded = [(ids + [0] * (length - len(ids)), labels + [IGNORED] * (length - len(ids))) for ids, labels in rows]
    counts = (io["input_ids"] == IMAGE).sum(1).tolist()
    first = [sum(max(1, count) for count in counts[:row]) for row in range(len(counts))]
    images = [io["images"][first[row] + number] for row, count in enumerate(counts) for number in range(count)]
    return {
        "input_ids": torch.tensor([ids for ids, _ in padded]),
        "labels": torch.tensor([labels for _, labels in padded]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows]),
        "pixel_values": torch.stack(images),
    }


def test_logits_loss_and_gradients_of_the_original(oracle, data_dir):
    io = load_file(data_dir / "llava_original_full" / "io.safetensors")
    expected = read_json(data_dir / "llava_original_full" / "grads.json")
    model, processor = import_model(oracle)
    inputs = expanded(io, model.config.image_token_id)
    labels = inputs.pop("labels")
    # The original has no row for the slots, so neither its logits nor its softmax has a column for them.
    rows = read_json(oracle / "config.json")["vocab_size"]
    logits = model(**inputs).logits[..., :rows]
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[real][:, ::8], io["logits_every8"][real], atol=1e-4, rtol=0)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    loss.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, norm in expected["grad_norms"].items():
        our_name = name.replace(PROJECTOR, "projectors.0.") if "mm_projector" in name else f"language_model.{name}"
        assert ours[our_name][:rows].norm().item() == pytest.approx(norm, rel=1e-3), name
    (spec,) = processor.image_processor.specs
    assert (spec.preprocessing.fit, spec.tokens, model.towers[0].config.layer) == ("pad", SLOTS, -2)
    assert read_json(oracle / "config.json")["use_cache"] is False and model.config.text_config.use_cache


def test_token_ids_of_the_original(oracle, data_dir):
    """tests/parity compares more conversations; here it is the tokenizer and the slots that import makes."""
    cases = json.loads((data_dir / "labels" / "llava.json").read_text())
    (case,) = (one for one in cases if (one["id"], one["template"]) == ("img_single", "v1"))
    _, processor = import_model(oracle)
    pad = processor.tokenizer.convert_tokens_to_ids(processor.slot_tokens.pad)
    found = processor.render(case["conversations"]).input_ids
    place = case["input_ids"].index(IMAGE)
    assert found == [*case["input_ids"][:place], *[pad] * SLOTS, *case["input_ids"][place + 1 :]]


def test_every_weight_is_the_original_and_the_new_row_is_the_mean(oracle, state):
    model, _ = import_model(oracle)
    ours = model.state_dict()
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        table = ours[f"language_model.{key}"]
        assert torch.equal(table[:-1], state[key]) and len(table) == len(state[key]) + 1
        torch.testing.assert_close(table[-1], state[key].mean(dim=0))
    tower = {key.removeprefix(f"{TOWER}vision_model."): t for key, t in state.items() if key.startswith(TOWER)}
    assert len(tower) > 60
    for key, tensor in tower.items():
        assert torch.equal(ours[f"towers.0.backbone.{key}"], tensor)


def test_files_of_older_versions(copy, oracle, state):
    """torch's file with buffers, a sentencepiece model alone, and no tower: that of the directory is read."""
    (copy / "model.safetensors").unlink()
    (copy / "tokenizer.json").unlink()
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(TOWER)}
    kept["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    torch.save(kept, copy / "pytorch_model.bin")
    torch.save({key: kept[key] for key in kept if key.startswith(PROJECTOR)}, copy / "mm_projector.bin")
    model, processor = import_model(copy)
    expected, theirs = import_model(oracle)
    published = load_file(copy.parent / "clip_vit_tiny_hf4" / "model.safetensors")
    for key, tensor in model.state_dict().items():
        if key.startswith("towers."):
            assert torch.equal(tensor, published[key.replace("towers.0.backbone.", "vision_model.")])
        else:
            assert torch.equal(tensor, expected.state_dict()[key])
    text = "USER: \nWhat is this? ASSISTANT:"
    assert processor.tokenizer(text).input_ids == theirs.tokenizer(text).input_ids


def test_a_tower_that_is_not_there_is_asked_for(copy, state):
    shutil.move(copy.parent / "clip_vit_tiny_hf4", copy.parent / "elsewhere")
    with pytest.raises(UserError, match=r"do not say how many heads it has: .*'\.\./clip_vit_tiny_hf4'.* add --vision"):
        import_model(copy)
    assert import_model(copy, vision=str(copy.parent / "elsewhere"))[0].towers[0].config.layer == -2
    save_file({k: t for k, t in state.items() if not k.startswith(TOWER)}, copy / "model.safetensors")
    change_config(copy, mm_vision_tower="openai/clip-vit-large-patch14-336")
    with pytest.raises(UserError, match=r"do not hold it: .* add --vision openai/clip-vit-large-patch14-336"):
        import_model(copy)


def test_openai_names_give_the_heads(copy, state):
    """64 wide, so one head here: a tower of another number would be silently wrong, theirs all have this width."""
    model, _ = import_model(change_config(copy, mm_vision_tower="openai/clip-vit-large-patch14"))
    assert model.towers[0].config.backbone["num_attention_heads"] == 1
    assert (model.towers[0].spec.image_size, model.towers[0].config.layer) == (28, -2)


def test_a_projector_beside_its_base(base, oracle, state, tmp_path):
    """What stage 1 leaves: a config and mm_projector.bin."""
    folder = tmp_path / "projector"
    folder.mkdir()
    shutil.copy(oracle / "config.json", folder)
    change_config(folder, mm_vision_tower=str(oracle.parent / "clip_vit_tiny_hf4"), _name_or_path="org/vicuna")
    torch.save({k: 2 * t for k, t in state.items() if k.startswith(PROJECTOR)}, folder / "mm_projector.bin")
    with pytest.raises(UserError, match=r"was trained beside a base .* with --base \(config\.json: 'org/vicuna'\)"):
        import_model(folder)
    model, _ = import_model(folder, base=str(base))
    expected = import_model(oracle)[0].state_dict()
    for key, tensor in model.state_dict().items():
        if not key.startswith("towers."):
            assert torch.equal(tensor, expected[key] * (2 if key.startswith("projectors.") else 1)), key
    change_config(folder, _name_or_path=str(base))
    again, _ = import_model(folder)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in again.state_dict().items())
    with pytest.raises(UserError, match="is a whole model, which has no base"):
        import_model(oracle, base=str(base))


@pytest.fixture(scope="module", params=["lora", "rslora"])
def adapter(request, oracle, base, state, tmp_path_factory):
    """(directory, scale): an adapter by peft, and what was trained beside it, as LLaVA's train.py saves both."""
    folder = tmp_path_factory.mktemp("adapter")
    shutil.copy(oracle / "config.json", folder)
    change_config(folder, mm_vision_tower=str(oracle.parent / "clip_vit_tiny_hf4"))
    settings = {"r": 4, "lora_alpha": 12, "use_rslora": request.param == "rslora"}
    targets = ["q_proj", "v_proj", "down_proj"]
    torch.manual_seed(0)
    wrapped = get_peft_model(
        LlamaForCausalLM.from_pretrained(base), LoraConfig(**settings, target_modules=targets, task_type="CAUSAL_LM")
    )
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.2)
    wrapped.save_pretrained(folder)
    trained = {f"base_model.model.{key}": 3 * t for key, t in state.items() if key.startswith(PROJECTOR)}
    torch.save(trained, folder / "non_lora_trainables.bin")
    return folder, 12 / (2 if request.param == "rslora" else 4)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_an_adapter_is_added_to_its_base(adapter, base, state, tmp_path, kind):
    source, scale = adapter
    folder = shutil.copytree(source, tmp_path / "adapter")
    factors = load_file(folder / "adapter_model.safetensors")
    if kind == "bin":
        (folder / "adapter_model.safetensors").unlink()
        torch.save(factors, folder / "adapter_model.bin")
    ours = import_model(folder, base=str(base))[0].state_dict()
    changed = 0
    for key, tensor in state.items():
        if key.startswith(TOWER):
            continue
        if key.startswith(PROJECTOR):
            assert torch.equal(ours[key.replace(PROJECTOR, "projectors.0.")], 3 * tensor)
            continue
        name = f"base_model.model.{key.removesuffix('.weight')}"
        if f"{name}.lora_A.weight" in factors:
            tensor = tensor + scale * factors[f"{name}.lora_B.weight"] @ factors[f"{name}.lora_A.weight"]
            changed += 1
        torch.testing.assert_close(ours[f"language_model.{key}"][: len(tensor)], tensor, atol=1e-6, rtol=0)
    assert changed == 2 * 3


def test_adapters_that_cannot_be_added_are_refused(adapter, base, tmp_path):
    folder = shutil.copytree(adapter[0], tmp_path / "adapter")
    values = read_json(folder / "adapter_config.json")
    (folder / "adapter_config.json").write_text(json.dumps(values | {"use_dora": True, "init_lora_weights": "pissa"}))
    with pytest.raises(UserError, match="not of a plain LoRA: it has use_dora True, init_lora_weights 'pissa', which"):
        import_model(folder, base=str(base))
    (folder / "adapter_config.json").write_text(json.dumps(values))
    factors = load_file(folder / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers"
    strays = {f"{prefix}.7.mlp.up_proj.lora_A.weight": torch.zeros(2, 2), f"{prefix}.7.x": torch.zeros(1)}
    save_file(factors | strays, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"changes model\.layers\.7\.mlp\.up_proj that the base lacks, and has one of"):
        import_model(folder, base=str(base))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres', expected pad or square; LLaVA-1.6 opens in"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type 'spatial_unpad', expected flat"),
        ({"mm_projector_type": "identity"}, "mm_projector_type 'identity', expected linear or mlp2x_gelu"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature 'cls', expected patch or cls_patch"),
        ({"model_type": "llava_mpt"}, "model_type 'llava_mpt', expected one of llava, llava_llama, llava_mistral"),
        ({"s2": True}, "several scales"),
        ({"mm_use_im_start_end": True}, "its tokenizer encodes text after <im_end> otherwise"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_mmchat_does_not_compute_is_refused(copy, change, message):
    with pytest.raises(UserError, match=message):
        import_model(change_config(copy, **change))


def test_settings_of_the_config(copy):
    changes = {"image_aspect_ratio": "square", "mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": 1}
    model, _ = import_model(change_config(copy, **changes))
    (tower,) = model.towers
    assert (tower.config.layer, tower.config.class_token) == (1, True)
    assert tower.spec.preprocessing.fit == "shortest-edge-crop"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{PROJECTOR}2.bias": None}, r"missing: projectors\.0\.2\.bias$"),
        ({f"{TOWER}vision_model.pre_layrnorm.bias": None}, r"missing: towers\.0\.backbone\.pre_layrnorm\.bias$"),
        ({"model.image_newline": torch.zeros(64)}, r"left over: language_model\.model\.image_newline$"),
        ({"stray": torch.zeros(2)}, "left over: stray$"),
    ],
    ids=["projector", "tower", "newline", "stray"],
)
def test_weights_that_do_not_fit_are_named(copy, state, change, message):
    save_file({k: t for k, t in (state | change).items() if t is not None}, copy / "model.safetensors")
    with pytest.raises(UserError, match=message):
        import_model(copy)


@pytest.mark.parametrize("sides", [False, True])
def test_tokens_that_the_original_added_are_its_slots(copy, state, tmp_path, sides):
    """A tokenizer that prefixes every piece, as Vicuna's does, gives the original's ids on both sides of an image."""
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["<im_patch>", *(["<im_start>", "<im_end>"] if sides else [])], special_tokens=True)
    tokenizer.save_pretrained(copy)
    settings = read_json(copy / "tokenizer_config.json")
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"legacy": True}))
    tokenizer = AutoTokenizer.from_pretrained(copy)
    rows = len(tokenizer)
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    grown = {key: torch.cat([state[key], torch.ones(rows - 1604, 64)]) for key in tables}
    save_file(state | grown, copy / "model.safetensors")
    change_config(copy, mm_use_im_patch_token=True, mm_use_im_start_end=sides, vocab_size=rows)
    model, processor = import_model(copy)
    assert model.config.image_token_id == 1604 and len(model.get_input_embeddings().weight) == rows
    question = "What is this?"
    found = processor.render([{"from": "human", "value": f"<image>\n{question}"}], add_generation_prompt=True).input_ids
    # llava/mm_utils.py tokenizer_image_token, with llava/eval/run_llava.py's prompt.
    start, end = ("<im_start>", "<im_end>") if sides else ("", "")
    text = processor.tokenizer.decode(found, skip_special_tokens=False)
    system = text[text.index("A chat") : text.index("USER:")]
    before, after = (
        tokenizer(piece).input_ids for piece in (f"{system}USER: {start}", f"{end}\n{question} ASSISTANT:")
    )
    assert found == [*before, *[1604] * SLOTS, *after[1:]]
    save_assistant(model, processor, tmp_path / "ours")
    again = load_assistant(tmp_path / "ours")[1].tokenizer
    assert again(f"{end or '</s>'}\n{question}").input_ids == tokenizer(f"{end or '</s>'}\n{question}").input_ids


def test_from_the_command_line(oracle, base, adapter, tmp_path, capsys):
    assert main(["import", str(oracle), str(tmp_path / "full")]) == 0
    assert "16 slots per image, vicuna_v1" in capsys.readouterr().out
    words = ["import", adapter[0], tmp_path / "lora", "--base", base, "--template", "llama_2"]
    assert main([str(word) for word in words]) == 0
    assert load_assistant(tmp_path / "lora")[1].template == "llama_2"
    with pytest.raises(SystemExit, match="2"):
        main(["import", str(tmp_path / "full"), str(tmp_path / "again"), "--base", "there"])


def init(*words):
    assert main(["init", *map(str, words), "--bare-slots"]) == 0


@pytest.mark.parametrize("kind", ["original", "transformers", "safetensors"])
def test_init_takes_a_trained_projector(base, oracle, state, tmp_path, kind, capsys):
    """With the same base and tower, the result equals the original; stage 1 is not trained again."""
    weights = {key: tensor for key, tensor in state.items() if key.startswith(PROJECTOR)}
    if kind == "transformers":
        names = {
            f"{PROJECTOR}0.": "multi_modal_projector.linear_1.",
            f"{PROJECTOR}2.": "multi_modal_projector.linear_2.",
        }
        weights = {names[key[: len(PROJECTOR) + 2]] + key[len(PROJECTOR) + 2 :]: t for key, t in weights.items()}
    file = tmp_path / ("mm_projector.safetensors" if kind == "safetensors" else "mm_projector.bin")
    (save_file if kind == "safetensors" else torch.save)(weights, file)
    tower = oracle.parent / "clip_vit_tiny_hf4"
    parts = ["--language", base, "--vision", tower, "--layer", "-2", "--fit", "pad"]
    init(*parts, "--projector-weights", file, "--out", tmp_path / "out")
    found, expected = load_assistant(tmp_path / "out")[0].state_dict(), import_model(oracle)[0].state_dict()
    for key, tensor in expected.items():
        if not key.startswith("towers."):
            torch.testing.assert_close(found[key], tensor, atol=1e-7, rtol=0)
    torch.save({**weights, "model.embed_tokens.weight": torch.zeros(2)}, tmp_path / "more.bin")
    for wrong, message in (("more.bin", "left over: model.embed_tokens.weight"), ("none.bin", "expected a file")):
        with pytest.raises(SystemExit, match="2"):
            init(*parts, "--projector-weights", tmp_path / wrong, "--out", tmp_path / "other")
        assert message in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_init_takes_the_language_model_of_an_assistant(oracle, base, tmp_path, capsys):
    tower = oracle.parent / "clip_vit_tiny_hf4"
    for name, language in (("a", base), ("b", oracle), ("c", tmp_path / "b")):
        init("--language", language, "--vision", tower, "--out", tmp_path / name)
    first, second, third = (load_assistant(tmp_path / name)[0].state_dict() for name in "abc")
    for key, tensor in first.items():
        if key.startswith("language_model."):
            torch.testing.assert_close(second[key], tensor, atol=1e-7, rtol=0)
        assert torch.equal(third[key], second[key])
    with pytest.raises(SystemExit, match="2"):
        init("--language", oracle, "--vision", tower, "--out", tmp_path / "d", "--without-weights")
    assert "is a whole assistant, whose weights must be read" in capsys.readouterr().err


def test_a_head_that_the_config_ties_to_other_embeddings_is_refused(copy):
    change_config(copy, tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"lm_head\.weight\) differs from the embeddings, but its config ties the two"):
        import_model(copy)
