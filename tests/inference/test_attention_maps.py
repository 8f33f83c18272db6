"""Attention maps against one eager forward of the whole sequence, and what is seen of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmchat.errors import UserError
from mmchat.inference import Generator
from mmchat.inference.attention_maps import attention_maps
from mmchat.inference.model_facts import model_facts, readable
from mmchat.inference.views import seen_views
from mmchat.model.directory import save_assistant
from mmchat.vision.spec import HALF, Preprocessing

QUESTION = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}


@pytest.fixture
def opened(make_assistant, tmp_path):
    """opened(**arguments of make_assistant): a Generator."""

    def make(**settings):
        save_assistant(*make_assistant(**settings), tmp_path / "model")
        return Generator(tmp_path / "model", device="cpu")

    return make


def slow(generator, messages, images, answer):
    """Words, and float[words, L] from one forward in which every position is a query."""
    processor = generator.processor
    layouts = processor.layouts([image.size for image in images])
    prompt = processor.render(messages, layouts, add_generation_prompt=True).input_ids
    ids = torch.tensor([processor.render([*messages, {"role": "assistant", "content": answer}], layouts).input_ids])
    generator.model.language_model.set_attn_implementation("eager")
    with torch.inference_mode():
        output = generator.model(input_ids=ids, **processor.image_inputs([images]), output_attentions=True)
    mean = torch.stack(output.attentions).mean((0, 2))[0, len(prompt) - 1 : -1].numpy()
    owner = [
        max(len(generator.tokenizer.decode(ids[0, len(prompt) : end]).split()) - 1, 0)
        for end in range(len(prompt) + 1, ids.shape[1])
    ]
    owner.append(owner[-1])  # the end of the text
    rows = np.stack([mean[np.asarray(owner) == word].mean(0) for word in range(owner[-1] + 1)])
    return rows, (ids[0] == generator.model.config.image_token_id).numpy()


def test_maps_are_those_of_one_eager_forward(opened, make_image):
    generator = opened()
    before = generator.model.language_model.config._attn_implementation
    image, answer = make_image(1), "a red seven, then " + "blue " * 40
    maps = attention_maps(generator, [QUESTION], [image], answer)
    assert generator.model.language_model.config._attn_implementation == before
    rows, slots = slow(generator, [QUESTION], [image], answer.strip())
    assert list(maps.words) == answer.split()
    ((heat,),) = maps.heat
    assert heat.shape == (len(maps.words), 4, 4)
    np.testing.assert_allclose(heat.reshape(len(heat), -1), rows[:, slots], atol=1e-5)
    np.testing.assert_allclose(maps.shares, rows[:, slots].sum(1), atol=1e-5)


def test_a_working_engine_is_not_disturbed(opened, make_image):
    generator = opened()
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # then the engine replaces what linear layers compute
        generator.model.to(torch.bfloat16)
    alone = generator.chat("What is this?", make_image(1), max_new_tokens=12)
    answer = generator.submit([QUESTION], [make_image(1)], max_new_tokens=12)
    maps = attention_maps(generator, [QUESTION], [make_image(1)], "a red seven")
    assert answer.result().text == alone
    assert len(maps.words) == 3 and min(maps.shares) > 0 and max(maps.shares) < 1
    assert generator.chat("What is this?", make_image(1), max_new_tokens=12) == alone


def test_each_image_and_view_has_its_own_map(opened, make_tower, make_image):
    tower = make_tower(layer=-2, preprocessing=Preprocessing(HALF, HALF, "bicubic", "anyres"))
    generator = opened(towers=[tower])
    images = [make_image(1, 60, 20)]
    maps = attention_maps(generator, [QUESTION], images, "yes")
    views = generator.processor.layouts([images[0].size])[0].views
    assert [one.shape for one in maps.heat[0]] == [(1, 4, 4)] * views
    newlines = maps.shares[0] - sum(one.sum() for one in maps.heat[0])
    assert newlines > 0  # the learned vectors at the ends of rows have no place

    two = {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Both?"}]}
    pair = attention_maps(opened(), [two], [make_image(1), make_image(2)], "yes")
    assert len(pair.heat) == 2
    assert sum(one.sum() for (one,) in pair.heat) == pytest.approx(pair.shares[0], abs=1e-5)


def test_native_images_keep_their_grid(opened, native_tower, make_image):
    generator = opened(towers=[native_tower])
    image = make_image(1, 56, 14)
    ((heat,),) = attention_maps(generator, [QUESTION], [image], "yes").heat
    assert heat.shape[1:] == generator.processor.image_processor.specs[0].grid(image.size)
    ((view,),) = seen_views(generator.processor, [image])
    assert view.width == 7 * heat.shape[2] and view.height == 7 * heat.shape[1]


def test_what_has_no_map_is_refused(opened, make_image):
    generator = opened(projector="resampler4")
    with pytest.raises(UserError, match="resampler4 have no place"):
        attention_maps(generator, [QUESTION], [make_image()], "yes")
    with pytest.raises(UserError, match="an image and an answer"):
        attention_maps(generator, [QUESTION], [make_image()], " ")


def test_a_squashed_view_is_the_resized_image(opened, make_tower):
    tower = make_tower(layer=-2, preprocessing=Preprocessing(HALF, HALF, "bicubic", "squash"))
    generator = opened(towers=[tower])
    image = Image.effect_noise((50, 30), 80).convert("RGB")
    ((view,),) = seen_views(generator.processor, [image])
    assert list(view.getdata()) == list(image.resize((28, 28), Image.Resampling.BICUBIC).getdata())


def test_facts(opened):
    generator = opened()
    facts = model_facts(generator)
    assert facts.parameters == sum(one.numel() for one in generator.model.parameters())
    assert facts.summary.startswith("clip_vit 28 px → mlp2x_gelu → llama 2 x 32 · ")
    assert facts.summary.endswith("16 slots per view · context of 512 tokens")
    assert [readable(count) for count in (12, 1_234, 1_234_567, 7_000_000_000)] == ["12", "1.23 k", "1.23 M", "7 B"]
