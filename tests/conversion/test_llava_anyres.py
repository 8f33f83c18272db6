"""transformers' LLaVA-NeXT and LLaVA-OneVision: imported with equal logits and answers, trained, and
exported with equal tensors."""

import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from mmchat.conversion import export_model, import_model
from mmchat.errors import UserError
from mmchat.model.directory import save_assistant
from tests.conversion.hf_models import (
    LLAVA_JINJA,
    assert_learns,
    change_config,
    open_tokenizer,
    rename_keys,
    save_source,
    spread,
    text_config,
    tower_config,
)

SIDE = 28
SIZES = ((60, 28), (28, 28), (30, 95), (57, 56), (100, 30))
"""Five aspect ratios."""
PINPOINTS = {
    "next": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]],
    "onevision": [[28 * rows, 28 * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)],
}
PROCESSORS = {
    "next": LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS["next"],
    ),
    "onevision": LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS["onevision"]
    ),
}


def make(kind, folder, **changes):
    """A directory as published, and the model that transformers made."""
    language, tower = {"next": ("llama", "clip"), "onevision": ("qwen2", "siglip")}[kind]
    tokenizer = open_tokenizer(language, "<image>", "<video>")
    values = {
        "vision_config": tower_config(tower),
        "text_config": text_config(language, tokenizer, max_position_embeddings=1024),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "image_grid_pinpoints": PINPOINTS[kind],
    }
    torch.manual_seed(0)
    if kind == "next":
        model = LlavaNextForConditionalGeneration(LlavaNextConfig(**values))
    else:
        values |= {"vision_aspect_ratio": "anyres_max_2", "vision_feature_layer": -1}
        values |= {"video_token_index": tokenizer.convert_tokens_to_ids("<video>")}
        model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**values))
    save_source(spread(model), tokenizer, folder, LLAVA_JINJA, PROCESSORS[kind].to_dict())
    return folder, model


@pytest.fixture(scope="module", params=PINPOINTS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def published(kind, tmp_path_factory):
    return make(kind, tmp_path_factory.mktemp(kind) / "source")


@pytest.fixture(scope="module")
def imported(published):
    return import_model(published[0])


def inputs_of(processor, images):
    content = [*[{"type": "image"}] * len(images), {"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": content}]
    layouts = processor.layouts([image.size for image in images])
    ids = torch.tensor([processor.render(messages, layouts, add_generation_prompt=True).input_ids])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return text, {**text, **processor.image_inputs([images])}


@pytest.mark.parametrize("sizes", [*([size] for size in SIZES), SIZES[:2]], ids=str)
def test_logits_and_answers_of_transformers(kind, published, imported, make_image, sizes):
    theirs, (model, processor) = published[1], imported
    images = [make_image(number, *size) for number, size in enumerate(sizes)]
    text, ours = inputs_of(processor, images)
    foreign = {**text, **PROCESSORS[kind]([images], return_tensors="pt")}
    with torch.no_grad():
        expected = theirs(**foreign).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(model(**ours).logits, expected, atol=1e-4, rtol=0)
    settings = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
    settings["eos_token_id"] = model.generation_config.eos_token_id
    assert torch.equal(model.generate(**ours, **settings), theirs.generate(**foreign, **settings))


def test_both_key_layouts_open(kind, published, imported, tmp_path):
    folder, model = tmp_path / "five", published[1]
    make(kind, folder)
    model.save_pretrained(folder, save_original_format=False)
    again = import_model(folder)[0].state_dict()
    folder = tmp_path / "four"
    make(kind, folder)
    rename_keys(folder, _as_transformers_4)
    older = import_model(folder)[0].state_dict()
    for name, tensor in imported[0].state_dict().items():
        assert torch.equal(again[name], tensor) and torch.equal(older[name], tensor)


def _as_transformers_4(key):
    """A key under the name that vLLM opens, which mmchat writes."""
    key = key.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")
    if key.startswith("lm_head."):
        return f"language_model.{key}"
    key = re.sub(r"^language_model\.(?!model\.|lm_head\.)", "language_model.model.", key)
    return re.sub(r"^vision_tower\.", "vision_tower.vision_model.", key)


@pytest.mark.slow
def test_twenty_steps_of_training(published, make_image):
    model, processor = import_model(published[0])
    newline = model.projectors.image_newline.clone()
    assert_learns(model, processor, [make_image(number, *size) for number, size in enumerate(SIZES[:3])])
    assert not torch.equal(newline, model.projectors.image_newline)


def test_what_does_not_fit_is_refused(kind, tmp_path):
    folder, _ = make(kind, tmp_path / "source")
    change_config(folder, image_grid_pinpoints=[[28, 56]])
    with pytest.raises(UserError, match=r"has other image_grid_pinpoints than the config\.json beside it"):
        import_model(folder)
    change_config(folder, image_grid_pinpoints=[[28, 50]])
    with pytest.raises(UserError, match="not all multiples of the tower's 28 pixels"):
        import_model(folder)
    change_config(folder, image_grid_pinpoints=PINPOINTS[kind], projector_hidden_act="relu")
    with pytest.raises(UserError, match="projector_hidden_act 'relu'"):
        import_model(folder)
    if kind == "onevision":
        change_config(folder, projector_hidden_act="gelu", vision_aspect_ratio="square")
        with pytest.raises(UserError, match="vision_aspect_ratio 'square'; expected anyres_max_N"):
            import_model(folder)


def test_exported_again_it_is_equal(kind, published, imported, tmp_path):
    save_assistant(*imported, tmp_path / "ours")
    told = export_model(tmp_path / "ours", "hf", tmp_path / "exported")
    assert told[1].startswith(f"{type(published[1]).__name__} opened it: logits for 1 image, 2 images, text")
    needs_torchvision = "its processor was NOT compared: transformers makes it only where torchvision is installed"
    assert told[2].startswith("LlavaNextProcessor opened it" if kind == "next" else needs_torchvision)
    before = load_file(published[0] / "model.safetensors")
    after = load_file(tmp_path / "exported" / "model.safetensors")
    assert {_as_transformers_4(key) for key in before} == after.keys()
    assert all(torch.equal(after[_as_transformers_4(key)], tensor) for key, tensor in before.items())
