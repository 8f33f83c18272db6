"""The assistant as a transformers model: language models, several towers, embeddings, adapters."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from mmchat.errors import UserError
from mmchat.model.assembly import assemble
from mmchat.model.directory import load_assistant, save_assistant
from tests.conftest import DATA, TOKENIZER_OF

QUESTION = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "Noise."}]


def example(processor, images, messages=QUESTION):
    rendered = processor.render(messages)
    inputs = {"input_ids": torch.tensor([rendered.input_ids]), "labels": torch.tensor([rendered.labels])}
    return {**inputs, **processor.image_processor(images)}


@pytest.mark.parametrize("kind", ["llama", "opt", "qwen2"])
def test_every_language_model(make_assistant, make_image, tmp_path, kind):
    model, processor = make_assistant(kind)
    inputs = example(processor, [make_image()])
    output = model(**inputs)
    assert output.logits.shape == (1, inputs["input_ids"].shape[1], len(processor.tokenizer))
    output.loss.backward()
    idle = {id(p) for tower in model.towers for p in tower.idle_parameters()}
    assert all(p.grad is not None for p in model.parameters() if id(p) not in idle)
    # The image matters.
    other = {**inputs, **processor.image_processor([make_image(seed=5)])}
    assert (model(**other).logits - output.logits).abs().max() > 1e-3
    save_assistant(model, processor, tmp_path / "model")
    reloaded, again = load_assistant(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(reloaded(**inputs).logits, model(**inputs).logits)
    assert again.render(QUESTION) == processor.render(QUESTION)
    assert reloaded.config.tie_word_embeddings == (kind == "opt")


@pytest.mark.parametrize("tied", [True, False])
def test_lm_head_is_saved_and_tied_as_configured(make_assistant, tmp_path, tied):
    model, processor = make_assistant("llama", tie_word_embeddings=tied)
    save_assistant(model, processor, tmp_path / "model")
    reloaded, _ = load_assistant(tmp_path / "model")
    for one in (model, reloaded):
        embedding, head = one.get_input_embeddings().weight, one.get_output_embeddings().weight
        assert (embedding.data_ptr() == head.data_ptr()) == tied
    state = reloaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], weight) for name, weight in model.state_dict().items())


def test_towers_fused_on_channels(make_assistant, make_tower, make_image, tmp_path):
    towers = [make_tower(seed=0, layer=-2), make_tower(seed=1, layer=-1, backbone={"hidden_size": 16})]
    model, processor = make_assistant(towers=towers, projector="linear")
    assert model.image_tokens == processor.image_tokens == 16
    pixels = processor.image_processor([make_image(0), make_image(1)])["pixel_values"]
    features = model.get_image_features(pixels)
    first, second = (
        projector(tower(seen).patches)
        for projector, tower, seen in zip(model.projectors, model.towers, pixels, strict=True)
    )
    assert torch.equal(features, torch.cat([first, second], dim=2))
    assert features.shape == (2, 16, 32)
    save_assistant(model, processor, tmp_path / "model")


def test_towers_fused_on_the_sequence(make_assistant, make_tower, make_image, tmp_path):
    towers = [make_tower(layer=-2), make_tower(seed=1, backbone={"image_size": 14})]
    model, processor = make_assistant(towers=towers, fusion="sequence")
    assert model.image_tokens == processor.image_tokens == 16 + 4
    inputs = example(processor, [make_image()])
    assert [seen.shape[-1] for seen in inputs["pixel_values"]] == [28, 14]
    features = model.get_image_features(inputs["pixel_values"])
    assert torch.equal(features[:, 16:], model.projectors[1](model.towers[1](inputs["pixel_values"][1]).patches))
    assert torch.isfinite(model(**inputs).loss)
    save_assistant(model, processor, tmp_path / "model")
    with pytest.raises(ValueError, match="pixel values for 1 towers, but the model has 2"):
        model.get_image_features(inputs["pixel_values"][0])


def test_towers_that_do_not_fit_each_other(make_assistant, make_tower):
    unequal = [make_tower(), make_tower(backbone={"image_size": 14})]
    with pytest.raises(UserError, match=r"must give equally many tokens, found \[16, 4\]; use fusion sequence"):
        make_assistant(towers=unequal)
    with pytest.raises(UserError, match="hidden size 32 is not divisible by 3 towers"):
        make_assistant(towers=[make_tower(), make_tower(), make_tower()])
    with pytest.raises(UserError, match=r"projector 'mlp' is unknown; known: linear, mlp\{n\}x_gelu, "):
        make_assistant(projector="mlp")
    with pytest.raises(UserError, match="fusion 'sum' is unknown; expected one of channels, sequence"):
        make_assistant(fusion="sum")


def test_slots_and_images_must_agree(make_assistant, make_image):
    model, processor = make_assistant()
    inputs = example(processor, [make_image(0), make_image(1)])
    ran = []
    model.towers[0].register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=r"16 image slots but 2 views x 16 features = 32; slots per row: \[16\]"):
        model(**inputs)
    assert not ran
    # An image that fills no slot changes nothing, and leaves the projector a gradient of zero.
    alone = model(**example(processor, [make_image(0)])).logits
    text = {"input_ids": torch.tensor([[1, 20, 30]]), "labels": torch.tensor([[-100, 20, 30]])}
    dummy = model(**text, pixel_values=inputs["pixel_values"][:1], dummy_images=1)
    assert torch.equal(dummy.logits, model(**text).logits)
    dummy.loss.backward()
    assert not model.projectors[0][0].weight.grad.any()
    # Bit for bit where the tower sees the same two images; alone, the CPU may round in another order.
    features = model.get_image_features(inputs["pixel_values"])[:1]
    ids = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with_dummy = model(**inputs, dummy_images=1).logits
    assert torch.equal(with_dummy, model(**ids, image_features=features).logits)
    torch.testing.assert_close(with_dummy, alone, atol=1e-5, rtol=1e-5)


def test_embeddings_resize(make_assistant, make_image, tmp_path):
    model, processor = make_assistant()
    inputs = example(processor, [make_image()])
    before = model(**inputs).logits
    size = before.shape[-1] + 5
    model.resize_token_embeddings(size, mean_resizing=False)
    after = model(**inputs).logits
    assert after.shape[-1] == model.config.text_config.vocab_size == size
    assert torch.equal(after[..., :-5], before)
    save_assistant(model, processor, tmp_path / "model")
    assert load_assistant(tmp_path / "model")[0].get_output_embeddings().weight.shape[0] == size


@pytest.mark.parametrize("spare", [0, 2, 40], ids="{} spare rows".format)
@pytest.mark.parametrize("kind", ["llama", "opt"], ids=["untied", "tied"])
def test_new_slot_tokens_start_as_the_mean_of_the_real_rows(make_assistant, make_tower, tmp_path, kind, spare):
    grown, _ = make_assistant(kind)
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / TOKENIZER_OF[kind])
    tokenizer.add_tokens(["<last>"])
    real, padded = len(tokenizer), len(tokenizer) + spare
    grown.language_model.resize_token_embeddings(padded)
    original = grown.language_model
    for part in (original.get_input_embeddings(), original.get_output_embeddings()):
        part.weight.data[real:] = 100.0  # would show in any mean
    original.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, processor = assemble(str(tmp_path), [make_tower()], "linear", "vicuna_v1")
    assert model.config.text_config.vocab_size == max(padded, real + 3)
    slots = processor.tokenizer.convert_tokens_to_ids(["<img>", "<imgpad>", "</img>"])
    assert slots == [real, real + 1, real + 2]
    for new, was in (
        (model.get_input_embeddings().weight, original.get_input_embeddings().weight),
        (model.get_output_embeddings().weight, original.get_output_embeddings().weight),
    ):
        assert torch.equal(new[:real], was[:real])
        assert len(new) == max(padded, real + 3)
        torch.testing.assert_close(new[slots], was[:real].mean(dim=0).expand(3, -1))
        assert torch.equal(new[real + 3 : padded], was[real + 3 :])
    assert model.config.image_token_id == slots[1]


def test_a_model_directory_names_no_path_of_the_machine(make_assistant, make_tower, tmp_path):
    source, processor = make_assistant("llama")
    for part in (source.language_model, processor.tokenizer):
        part.save_pretrained(tmp_path / "language")
    model, processor = assemble(str(tmp_path / "language"), [make_tower()], "linear", "vicuna_v1")
    save_assistant(model, processor, tmp_path / "model")
    save_assistant(*load_assistant(tmp_path / "model"), tmp_path / "again")
    files = [*(tmp_path / "model").iterdir(), *(tmp_path / "again").iterdir()]
    assert len(files) > 10
    assert [file for file in files if str(tmp_path).encode() in file.read_bytes()] == []


def test_language_models_that_cannot_be_opened(make_tower, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = "is no path here, HF_HUB_OFFLINE is set, and the hub's cache does not have it"
    for language, why in (("no/such-model", offline), (str(tmp_path), "is neither a directory")):
        with pytest.raises(UserError, match=f"^tokenizer '{language}' {why}.*[^\n]*$"):
            assemble(language, [make_tower()], "linear", "vicuna_v1")
    no_model = str(data_dir / "tokenizers" / "opt_like")
    with pytest.raises(UserError, match=r"^language model '.*opt_like' is neither a directory"):
        assemble(no_model, [make_tower()], "linear", "vicuna_v1")


def test_lora(make_assistant, make_image):
    peft = pytest.importorskip("peft")
    model, processor = make_assistant()
    inputs = example(processor, [make_image()])
    plain = model(**inputs).logits
    lora = peft.LoraConfig(r=2, target_modules=r"language_model\..*\.(q_proj|v_proj)")
    adapted = peft.get_peft_model(model, lora)
    torch.testing.assert_close(adapted(**inputs).logits, plain)
    adapted(**inputs).loss.backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert len(trained) == 2 * 2 * 2
    assert all("lora_" in name for name in trained)


def test_gradient_checkpointing_gives_the_same_gradients(make_assistant, make_image):
    model, processor = make_assistant()
    inputs = example(processor, [make_image()])
    model.train()
    gradients, calls = [], []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
            model.language_model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
        model.zero_grad(set_to_none=True)
        model(**inputs, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(calls) == 2  # run again in the backward pass
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_images_are_pil_images_arrays_or_local_paths(make_assistant, make_image, tmp_path):
    _, processor = make_assistant("llama")
    make_image().save(tmp_path / "a.png")
    expected = processor.image_processor([make_image()] * 2)["pixel_values"]
    for images in ([make_image(), np.asarray(make_image())], [[tmp_path / "a.png"], [str(tmp_path / "a.png")]]):
        assert torch.equal(processor.image_processor(images)["pixel_values"], expected)
    content = [{"type": "image", "path": str(tmp_path / "a.png")}, {"type": "text", "text": "What?"}]
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **how)
    assert torch.equal(inputs["pixel_values"], expected[:1])
    for wrong, message in (
        ("https://x/a.png", "images are not downloaded here"),
        (str(tmp_path / "b.png"), "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            processor.image_processor([wrong])
    with pytest.raises(ValueError, match="flat list of images"):
        processor.image_processor([3])


def test_generation_stops_where_the_template_ends_an_answer(make_assistant):
    """Otherwise a ChatML model with another EOS in its tokenizer would continue with the user's turn."""
    model, processor = make_assistant("qwen2")
    stops = model.generation_config.eos_token_id
    tokens = processor.tokenizer
    assert set(stops) == {tokens.eos_token_id, tokens.convert_tokens_to_ids("<|im_end|>")}
    model, processor = make_assistant("llama")
    assert model.generation_config.eos_token_id == [processor.tokenizer.eos_token_id]


def test_another_template_leaves_the_models_own_system_message(make_assistant):
    _, processor = make_assistant("llama")
    processor.system = "Be brief."
    messages = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Noise."}]
    own, named = processor.render(messages), processor.render(messages, template=processor.template)
    assert own == named and "Be brief." in processor.tokenizer.decode(own.input_ids)
    plain = processor.render(messages, template="plain")  # which has no place for it
    assert "brief" not in processor.tokenizer.decode(plain.input_ids)
